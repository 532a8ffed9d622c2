"""Rejected-sample self-improvement: the answers of a policy are judged, and the best ones kept to train on."""
