"""From a config or a checkpoint to processor, model, parameters, mesh and reward pool."""
