def write(name, folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder/f"{name}.html").write_text("x")
