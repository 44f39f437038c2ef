"""The made world: invented people, facts about them, text, and small models trained to recall as large ones do."""
