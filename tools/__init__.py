"""Programs of the developers: generators of documents. Not part of the wheel."""
