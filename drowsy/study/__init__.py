"""The paper's study of any network, and the demo."""
