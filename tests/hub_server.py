"""A Hugging Face hub on the loopback, with as much of its API as `datasets.load_dataset` needs to load parquet files.

The environment variable HF_ENDPOINT sends the client here.
"""
import hashlib
import io
import json
import posixpath
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pyarrow
from pyarrow import parquet


def parquet_file(stories):
    file = io.BytesIO()
    parquet.write_table(pyarrow.table({'text': stories}), file)
    return file.getvalue()


class Handler(BaseHTTPRequestHandler):
    """Answers for one revision of one dataset: server.repo, server.revision, server.files {path: content}."""
    protocol_version = 'HTTP/1.1'

    def log_message(self, *_):
        pass

    def answer(self, status, body=b'', **headers):
        self.send_response(status)
        for name, value in {**headers, 'Content_Length': len(body)}.items():
            self.send_header(name.replace('_', '-'), value)
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(body)

    def do_GET(self):
        server, path = self.server, self.path.partition('?')[0]
        api = f'/api/datasets/{server.repo}'
        if path == f'{api}/revision/{server.revision}':
            siblings = [{'rfilename': name} for name in server.files]
            return self.answer(200, json.dumps({'id': server.repo, 'sha': server.revision, 'private': False, 'tags': [],
                                                'siblings': siblings}).encode())
        if path.startswith(f'{api}/tree/{server.revision}'):
            folder = path.removeprefix(f'{api}/tree/{server.revision}').strip('/')
            entries = [{'type': 'file', 'path': name, 'size': len(content), 'oid': hashlib.sha1(content).hexdigest()}
                       for name, content in server.files.items() if posixpath.dirname(name) == folder]
            entries += [{'type': 'directory', 'path': name, 'size': 0, 'oid': '0' * 40}
                        for name in {posixpath.dirname(name) for name in server.files} if name and not folder]
            return self.answer(200, json.dumps(entries).encode())
        content = server.files.get(path.removeprefix(f'/datasets/{server.repo}/resolve/{server.revision}/'))
        if content is None:
            known = server.files and server.repo in path
            return self.answer(404, X_Error_Code='EntryNotFound' if known else 'RepoNotFound')
        if server.is_broken and path.endswith('.parquet') and self.command == 'GET':
            self.close_connection = True  # without an answer
            return None
        return self.answer(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=server.revision)

    do_HEAD = do_GET


@contextmanager
def serve(repo, revision, files, is_broken=False):
    """Run the server in a thread; yield its address. is_broken: close the connection in place of parquet files."""
    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.repo, server.revision, server.files, server.is_broken = repo, revision, files, is_broken
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f'http://127.0.0.1:{server.server_port}'
    finally:
        server.shutdown()
        server.server_close()
