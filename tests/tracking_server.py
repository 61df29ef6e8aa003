"""A tracking server of MLflow's with one experiment, which takes a run and knows nothing else."""

import http.server
import json

KNOWN = {
    "get-by-name": {"experiment": {"experiment_id": "1", "lifecycle_stage": "active"}},
    "create": {"run": {"info": {"run_id": "r", "experiment_id": "1"}, "data": {}}},
}


class Answers(http.server.BaseHTTPRequestHandler):
    """Whatever else it is asked, it answers with this status and message."""

    status = 200
    message: dict[str, str] = {}  # noqa: RUF012

    def do_GET(self):
        self.answer(self.path.partition("?")[0].rpartition("/")[2])

    do_POST = do_GET  # noqa: N815

    def answer(self, name):
        body = json.dumps(KNOWN.get(name, self.message)).encode()
        self.send_response(200 if name in KNOWN else self.status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass
