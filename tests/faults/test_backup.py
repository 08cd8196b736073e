"""The results database put back from an older backup in the middle of a job."""

import shutil
import sqlite3

from tests.faults.stack import Stack, ended, until


def _backed_up(stack: Stack) -> None:
    with stack.database() as source, sqlite3.connect(stack.folder / "backup.db") as copy:
        source.backup(copy)


def _put_back(stack: Stack) -> None:
    stack.kill("consumer")
    for suffix in ("-wal", "-shm"):
        (stack.folder / f"themes.db{suffix}").unlink(missing_ok=True)
    shutil.copyfile(stack.folder / "backup.db", stack.folder / "themes.db")
    stack.start("consumer")


def _says(stack: Stack, *verb: str) -> str:
    ended(stack.start(verb[0], *verb))
    return (stack.folder / "logs" / f"{verb[0]}.log").read_text()


def _interrupted(stack: Stack, *, is_listed: bool) -> str:
    """A job whose database is put back from a copy that has a part of its rows, or does not know the job at all."""
    stack.wait_done(stack.enqueue(stack.destinations("First", 2)))
    if not is_listed:
        _backed_up(stack)
    job_id = stack.enqueue(stack.destinations("Town", 240))
    # The copy of a job that has no end yet would never end.
    sealed = "SELECT total FROM jobs WHERE job_id = ?"
    until("some rows", lambda: stack.rows() >= 20 and stack.query(sealed, job_id)[0][0] == 240)
    if is_listed:
        _backed_up(stack)
    until("more rows", lambda: stack.rows() >= 80)
    _put_back(stack)
    return job_id


def test_rows_that_an_older_copy_of_the_database_lacks_end_as_failures_which_a_retry_asks_again(
    own_stack: Stack,
) -> None:
    job_id = _interrupted(own_stack, is_listed=True)
    own_stack.wait_done(job_id)
    assert [row[0] for row in own_stack.query("SELECT DISTINCT error_class FROM failures")] == ["LostError"]
    assert "asking again for" in _says(own_stack, "retry", job_id)
    until("all rows", lambda: own_stack.rows() == 242)
    own_stack.wait_done(job_id)


def test_a_job_that_an_older_copy_of_the_database_does_not_list_says_what_to_do(own_stack: Stack) -> None:
    job_id = _interrupted(own_stack, is_listed=False)
    mend = f"`themes cancel {job_id}`, then `themes enqueue FILE --only-missing`"
    until("retry to name the mend", lambda: mend in _says(own_stack, "retry", job_id))
    assert own_stack.state(job_id) == "running"
