"""Results as text, HTML, figures and model cards."""
