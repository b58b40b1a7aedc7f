"""Two machines with one door each; whoever reads the library may leave them unread."""
