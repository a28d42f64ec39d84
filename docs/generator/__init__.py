"""Programs that make parts of the documents. Each returns Markdown; none knows mkdocs."""
