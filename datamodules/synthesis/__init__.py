"""How synthetic clips of faces are made: a person, a motion, a light, things around the face, a photograph of it all."""
