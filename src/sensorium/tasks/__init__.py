"""What people do with the three verbs."""
