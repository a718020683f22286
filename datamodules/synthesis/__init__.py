"""How synthetic clips are made: a person, a motion, a light, things around it, a photograph."""
