"""Small programs that use the compiler."""
