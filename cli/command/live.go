package command

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/nextstack/nextstack/api"
)

// terminalWidth returns the columns of w, and whether w is a terminal at all.
func terminalWidth(w io.Writer) (int, bool) {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return 0, false
	}
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil || width < 20 {
		width = 80
	}
	return width, true
}

// live shows the steps of an operation while it runs: a list that is drawn again and again on a terminal, and a line for
// every change elsewhere.
type live struct {
	out   io.Writer
	width int // 0: not a terminal
	drawn int // lines of the last drawing
	begun bool
	stuck string
	seen  []api.StepRecord
	told  time.Time                     // when progress was last shown, if this is no terminal
	moves map[string]api.OperationState // of VMs on their way, by VM
}

// tellEvery is how often progress makes a new line where lines cannot be drawn over.
const tellEvery = 5 * time.Second

func newLive(out io.Writer) *live {
	width, _ := terminalWidth(out)
	return &live{out: out, width: width}
}

// observe shows op as it is now.
func (l *live) observe(op *api.Operation) {
	if l.width > 0 {
		l.draw(op)
		return
	}
	if !l.begun {
		fmt.Fprintf(l.out, "%s of %s (operation %s)\n", op.Kind, target(op), op.ID)
		l.begun = true
	}
	for i, s := range op.Steps {
		if i >= len(l.seen) {
			l.seen = append(l.seen, api.StepRecord{State: api.StepPending})
		}
		if was := l.seen[i]; was.State != s.State || was.Attempts != s.Attempts && s.Error != nil {
			fmt.Fprintf(l.out, "  [%d/%d] %s\n", i+1, len(op.Steps), stepLine(s, time.Now()))
			l.seen[i] = s
		}
	}
	l.tell(op.Progress)
	reason := stuckReason(op)
	if reason != "" && reason != l.stuck {
		fmt.Fprintf(l.out, "  %s\n", reason)
	}
	l.stuck = reason
}

// tell shows every VM that has got further, and from time to time how far the step is.
func (l *live) tell(p *api.Progress) {
	if p == nil {
		return
	}
	if l.moves == nil {
		l.moves = map[string]api.OperationState{}
	}
	for _, m := range p.Moves {
		if m.State != "" && m.State != l.moves[m.VM.ID] {
			l.moves[m.VM.ID] = m.State
			fmt.Fprintf(l.out, "    %s\n", oneLine(moveLine(m)))
		}
	}
	if s := progressLine(p); s != "" && time.Since(l.told) >= tellEvery {
		l.told = time.Now()
		fmt.Fprintf(l.out, "    %s\n", oneLine(s))
	}
}

// draw replaces the drawing before.
func (l *live) draw(op *api.Operation) {
	lines := []string{fmt.Sprintf("%s of %s: %s%s", op.Kind, target(op), op.State, took(op))}
	for _, s := range op.Steps {
		lines = append(lines, "  "+stepMark(s.State)+" "+stepLine(s, time.Now()))
		if s.State == api.StepRunning {
			for _, p := range progressLines(op.Progress) {
				lines = append(lines, "    "+p)
			}
		}
	}
	if r := stuckReason(op); r != "" {
		lines = append(lines, "  "+r)
	}
	var b strings.Builder
	if l.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA\x1b[J", l.drawn)
	}
	for _, s := range lines {
		b.WriteString(clip(oneLine(s), l.width-1) + "\n")
	}
	l.drawn = len(lines)
	fmt.Fprint(l.out, b.String())
}

func stepMark(s api.StepState) string {
	switch s {
	case api.StepDone:
		return "✓"
	case api.StepRunning:
		return "…"
	case api.StepFailed:
		return "✗"
	case api.StepUndoing, api.StepUndone:
		return "↶"
	default:
		return "·"
	}
}

// stepLine says in one line what there is to say of a step.
func stepLine(s api.StepRecord, now time.Time) string {
	line := fmt.Sprintf("%s: %s", s.Name, s.State)
	var notes []string
	if s.Where != "" && s.Where != "control" {
		notes = append(notes, "on "+s.Where)
	}
	if d := stepTime(s, now); d != "" {
		notes = append(notes, d)
	}
	if s.Attempts > 1 {
		notes = append(notes, fmt.Sprintf("attempt %d", s.Attempts))
	}
	if len(notes) > 0 {
		line += " (" + strings.Join(notes, ", ") + ")"
	}
	if s.Error != nil && s.State != api.StepDone {
		line += ": " + s.Error.What
		if s.Error.Why != "" {
			line += ": " + s.Error.Why
		}
	}
	return line
}

// stepTime returns how long a step took or has taken so far.
func stepTime(s api.StepRecord, now time.Time) string {
	switch {
	case s.Started.IsZero():
		return ""
	case s.Ended.IsZero():
		return shortDuration(now.Sub(s.Started))
	default:
		return shortDuration(s.Ended.Sub(s.Started))
	}
}

// took says how long an ended operation took.
func took(op *api.Operation) string {
	if op.Ended.IsZero() || op.Created.IsZero() {
		return ""
	}
	return " in " + shortDuration(op.Ended.Sub(op.Created))
}

func stuckReason(op *api.Operation) string {
	if op.State != api.OpStuck {
		return ""
	}
	s := "stuck"
	if op.Error != nil {
		s += ": " + op.Error.Error()
	}
	return s + fmt.Sprintf("; it keeps trying, and `gnext op resume %s` hurries it", op.ID)
}

// clip cuts s to at most n runes.
func clip(s string, n int) string {
	r := []rune(s)
	if len(r) <= n {
		return s
	}
	return string(r[:n-1]) + "…"
}
