"""The commands, grouped by what they work on; each is a few lines over a public function."""
