"""The platform's database, its files, and the JSON objects that go over the wire."""
