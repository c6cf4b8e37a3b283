"""What the platform remembers: SQLite, files beside it, and the shapes that go over the wire."""
