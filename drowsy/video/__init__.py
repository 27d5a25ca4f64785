"""Video: neurons that remember what they put out when they were last awake."""
