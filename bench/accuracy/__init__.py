"""How well phases are attributed: in virtual time against the limit, in real time against peers."""
