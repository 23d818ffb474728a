"""The service: from a model to a URL that TensorFlow Serving's clients call."""
