"""What build.py does, a module for each job."""
