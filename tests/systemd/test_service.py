"""The service under a systemd that was booted for it: from its installation to an upgrade."""

from __future__ import annotations

import json
import re

from tests.systemd.box import PATIENCE_S, ROOT, Box
from tests.systemd.service import CONFIG, MARKED, Service


def test_it_is_installed_as_the_readme_says(installed: Box) -> None:
    assert installed.shell("stat -c '%U %G %a' /etc/runnerd/config.yaml /run/runnerd") == (
        "root runnerd 640\nrunnerd runnerd 755\n"
    )
    assert set(installed.shell("id -Gn runnerd").split()) >= {"runnerd", "render", "video"}
    assert installed.shell("systemctl --failed --no-legend") == ""


def test_started_means_ready(service: Service) -> None:
    service.configure("hooks: {on_startup: {preload: [red]}}\n" + CONFIG)
    service.start()
    assert service.show("ActiveState") == "active"
    assert list(service.runners()) == ["red"]
    assert service.show("StatusText") == "1 runner loaded, 0 requests running, 0 queued"
    assert service.curl().communicate()[0] != ""
    box = service.box
    box.shell("useradd --groups runnerd ana 2>/dev/null || true; useradd bob 2>/dev/null || true")
    assert box.run("/opt/runnerd/.venv/bin/runnerctl", "status", user="ana").returncode == 0
    denied = box.run("/opt/runnerd/.venv/bin/runnerctl", "status", user="bob", check=False)
    assert (denied.returncode, "may not open it" in denied.stderr) == (3, True)


def test_it_is_confined_and_so_are_its_runners(service: Service) -> None:
    service.start()
    runner = service.load("red")["red"]
    for pid in (service.main_pid, runner):
        status = service.box.shell(f"cat /proc/{pid}/status")
        facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert (facts["NoNewPrivs"], facts["Seccomp"]) == ("1", "2")
        assert int(facts["CapBnd"], 16) == int(facts["CapEff"], 16) == 0
        names = service.box.shell(f"tr '\\0' '\\n' </proc/{pid}/environ | cut -d= -f1 | sort").split()
        assert ("NOTIFY_SOCKET" in names) == (pid != runner)
    inside = ["nsenter", "--target", str(runner), "--mount", "--setuid", "0", "--", "sh", "-c"]
    for folder in ("/usr", "/etc", "/home", "/var/lib/runnerd", "/tmp"):
        done = service.box.run(*inside, f"touch {folder}/x && rm {folder}/x", check=False)
        assert (done.returncode == 0) == (folder in ("/var/lib/runnerd", "/tmp")), folder
    scores = [f"/proc/{pid}/oom_score_adj" for pid in (service.main_pid, runner)]
    daemons, runners = service.box.run("cat", *scores).stdout.split()
    assert daemons in ("-500", "0"), "0 where the box may not lower it"
    assert runners == "0"


def test_a_reload_changes_the_configuration_or_says_why_not(service: Service) -> None:
    service.start()
    service.box.run("tee", "/etc/runnerd/config.yaml", input=CONFIG.replace("red:", "rouge:"))
    service.box.run("systemctl", "reload", "runnerd")
    assert "rouge" in service.ctl("models").stdout
    service.box.run("tee", "/etc/runnerd/config.yaml", input="models: [\n")
    done = service.box.run("systemctl", "reload", "runnerd", check=False)
    assert done.returncode != 0
    assert service.show("ActiveState") == "active"
    assert "rouge" in service.ctl("models").stdout
    assert service.said("the configuration stays as it was")


def test_systemctl_restart_unloads_nothing(service: Service) -> None:
    service.start()
    before, pid = service.load("red", "slow"), service.main_pid
    chat = service.chat("slow", 30)
    service.until("request.dispatched")
    service.box.run("systemctl", "restart", "runnerd")
    assert service.main_pid != pid
    assert service.runners() == before
    assert chat.communicate()[0].rstrip().endswith("[DONE]"), "a request that runs may end first"
    service.box.run("systemctl", "try-restart", "runnerd")
    assert service.runners() == before


def test_systemctl_stop_leaves_no_process(service: Service) -> None:
    service.start()
    service.load("red", "slow")
    assert len(service.marked()) == 3, "two runners and the guardian"
    service.box.run("systemctl", "stop", "runnerd")
    assert service.marked() == []
    assert (service.show("ActiveState"), service.show("Result")) == ("inactive", "success")


def test_a_long_stop_is_given_time(service: Service) -> None:
    service.configure("unloadTimeout: 8\n" + CONFIG, TimeoutStopSec=3)
    service.start()
    service.load("slow")
    chat = service.chat("slow", 100_000)
    service.until("request.dispatched")
    service.box.run("systemctl", "stop", "runnerd")
    chat.communicate()
    assert (service.show("ActiveState"), service.show("Result")) == ("inactive", "success")
    assert service.marked() == []


def test_a_killed_daemon_comes_back_and_adopts(service: Service) -> None:
    service.start()
    before, pid = service.load("red"), service.main_pid
    service.box.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "runnerd")
    service.follow("1 of 1 runners alive")
    service.start()  # waits until it has
    assert service.main_pid != pid
    assert service.show("NRestarts") == "1"
    assert service.runners() == before


def test_a_daemon_that_hangs_is_ended_by_the_watchdog(service: Service) -> None:
    service.configure(WatchdogSec=3, TimeoutAbortSec=2)
    service.start()
    before, pid = service.load("red"), service.main_pid
    service.box.run("kill", "-STOP", str(pid))
    service.follow("Watchdog timeout")
    service.follow("Scheduled restart job")
    service.start()
    assert service.main_pid != pid
    assert service.runners() == before


def test_a_healthy_one_is_left_alone_by_it(service: Service) -> None:
    service.configure(WatchdogSec=2)
    service.start()
    pid = service.main_pid
    service.load("slow")
    chat = service.chat("slow", 120)  # six seconds
    assert chat.communicate()[0].rstrip().endswith("[DONE]")
    assert (service.main_pid, service.show("NRestarts")) == (pid, "0")


def test_a_bad_configuration_is_not_tried_again(service: Service) -> None:
    service.configure("models: [\n")
    done = service.box.run("systemctl", "start", "runnerd", check=False)
    assert done.returncode != 0
    assert (service.show("ActiveState"), service.show("NRestarts")) == ("failed", "0")
    assert service.show("ExecMainStatus") == "2"


def test_runnerctl_restart_upgrades_in_place(service: Service) -> None:
    service.configure(WatchdogSec=5)
    service.start()
    before, pid = service.load("red", "slow"), service.main_pid
    metadata = "/opt/runnerd/.venv/lib/python3*/site-packages/runnerd-*.dist-info/METADATA"
    service.box.shell(f"sed -i 's/^Version: .*/Version: 9.9.9/' {metadata}")
    chat = service.chat("slow", 30)
    service.until("request.dispatched")
    said = service.ctl("--no-json", "restart").stdout
    assert re.fullmatch(r"runnerd [0-9.]+ -> 9\.9\.9, 2 runners adopted in .*s\n", said), said
    assert chat.communicate()[0].rstrip().endswith("[DONE]")
    assert service.runners() == before
    assert (service.main_pid, service.show("NRestarts")) == (pid, "0")
    assert service.show("ActiveState") == "active"
    service.box.run("systemctl", "stop", "runnerd")
    assert service.marked() == []


def test_clients_wait_at_systemds_sockets(service: Service) -> None:
    box = service.box
    box.run("systemctl", "start", "runnerd.socket", "runnerd-control.socket")
    assert service.show("ActiveState") == "inactive"
    assert json.loads(service.curl(path="/v1/models").communicate()[0])["data"], "the first client starts it"
    assert service.show("ActiveState") == "active"
    before = service.load("red")
    over = "/tmp/over"
    ask = f"curl -sS -o /dev/null -w '%{{http_code}}\\n' {URL} || echo lost"
    script = f"rm -f {over}; while [ ! -e {over} ]; do {ask}; done"
    asker = box.start("bash", "-c", script)
    for _ in range(2):
        box.run("systemctl", "restart", "runnerd")
        service.ctl("restart")
    box.run("touch", over)
    statuses = asker.communicate(timeout=PATIENCE_S)[0].split()
    assert set(statuses) == {"200"}, statuses
    assert len(statuses) > 3
    assert service.runners() == before
    box.run("systemctl", "stop", "runnerd")
    assert service.marked() == []
    assert service.ctl("status").returncode == 0, "somebody who asks starts it again"


URL = "http://127.0.0.1:8080/health"


def test_a_socket_of_another_name_is_refused(service: Service) -> None:
    box = service.box
    box.shell("mkdir -p /etc/systemd/system/runnerd.socket.d")
    box.run("tee", "/etc/systemd/system/runnerd.socket.d/x.conf", input="[Socket]\nFileDescriptorName=web\n")
    box.run("systemctl", "daemon-reload")
    try:
        box.run("systemctl", "start", "runnerd.socket")
        assert box.run("systemctl", "start", "runnerd", check=False).returncode != 0
        assert service.said("a socket named 'web'")
    finally:
        box.shell("systemctl stop runnerd.socket; rm -r /etc/systemd/system/runnerd.socket.d")


def test_lines_can_be_found_by_what_they_are_about(service: Service) -> None:
    service.start()
    service.load("red", "slow")
    service.ctl("unload", "red")
    lines = service.journal("RUNNERD_MODEL=red")
    text = "\n".join(line["MESSAGE"] for line in lines)
    assert "loads red" in text
    assert "unloaded" in text
    assert "slow" not in text
    assert {line["SYSLOG_IDENTIFIER"] for line in lines} == {"runnerd"}
    runner = next(line["RUNNERD_RUNNER"] for line in lines if "loads red" in line["MESSAGE"])
    assert all(line["RUNNERD_SEQ"].isdigit() for line in lines)
    assert len(service.journal(f"RUNNERD_RUNNER={runner}")) >= 3


def test_for_one_person_without_root(installed: Box) -> None:
    """As the README's last commands have it, but for the lingering, which is granted here."""
    box = installed
    box.shell("id ivy 2>/dev/null || useradd --create-home ivy; loginctl enable-linger ivy")
    user = box.shell("id -u ivy").strip()
    box.run("systemctl", "start", f"user@{user}")
    home = "export XDG_RUNTIME_DIR=/run/user/$(id -u) HOME=/home/ivy; cd; ln -sfn /opt/runnerd runnerd"
    config = "mkdir -p .config/runnerd; cat >.config/runnerd/config.yaml"
    box.run("bash", "-euc", f"{home}; {config}", user="ivy", input=CONFIG)
    block = (ROOT / "systemd/README.md").read_text("utf-8").split("```\n")[-2]
    commands = "\n".join(line for line in block.splitlines() if not line.startswith("loginctl"))
    assert "enable --now" in commands
    box.run("bash", "-euc", f"{home}\n{commands}", user="ivy")

    def ivy(*command: str) -> str:
        return box.run("bash", "-euc", f"{home}; exec {' '.join(command)}", user="ivy").stdout

    ivy("runnerd/.venv/bin/runnerctl load red")
    [before] = map(json.loads, ivy("runnerd/.venv/bin/runnerctl --json ps").splitlines())
    ivy("systemctl --user restart runnerd")
    [after] = map(json.loads, ivy("runnerd/.venv/bin/runnerctl --json ps").splitlines())
    assert (after["id"], after["pid"]) == (before["id"], before["pid"])
    ivy("systemctl --user reload runnerd")
    ivy("systemctl --user stop runnerd")
    assert box.shell(f"{MARKED} || true") == ""
