"""The figures of the resumable streams of a process, and of several."""

from relay.transports.resume.figures import BUDGET, FAR, NEAR, ResumeFigures, added, resume_figures


def test_the_figures_of_both_ends_are_added():
    NEAR.clear()
    FAR.clear()
    NEAR.attempts, NEAR.resumes, NEAR.losses = 7, 5, 1
    FAR.resumes, FAR.losses, FAR.refused = 10, 20, 3
    BUDGET.held += 1000
    try:
        assert resume_figures() == ResumeFigures(attempts=7, resumes=15, losses=21, refused=3, held=1000)
    finally:
        BUDGET.held -= 1000
        NEAR.clear()
        FAR.clear()
    assert resume_figures() == (0, 0, 0, 0, 0)


def test_the_figures_of_processes_are_added():
    one = ResumeFigures(1, 2, 3, 4, 5)
    assert added([one, one]) == ResumeFigures(2, 4, 6, 8, 10)
