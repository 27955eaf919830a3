package command

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"github.com/nextstack/nextstack/api"
)

// progressLines says how far the running step of an operation is: what it does in one line, and one for each VM on its way.
func progressLines(p *api.Progress) []string {
	if p == nil {
		return nil
	}
	var out []string
	if s := progressLine(p); s != "" {
		out = append(out, s)
	}
	for _, m := range p.Moves {
		if m.Operation != "" && !m.State.Ended() {
			out = append(out, "  "+moveLine(m))
		}
	}
	return out
}

func progressLine(p *api.Progress) string {
	var parts []string
	add := func(format string, args ...any) { parts = append(parts, fmt.Sprintf(format, args...)) }
	if p.Text != "" {
		add("%s", p.Text)
	}
	switch {
	case p.Total > 0:
		add("%s of %s (%d%%)", formatSize(p.Done), formatSize(p.Total), min(100, 100*(p.Done>>10)/max(1, p.Total>>10)))
	case p.Done > 0:
		add("%s", formatSize(p.Done))
	}
	if m := p.Migrate; m != nil {
		add("%s remaining", formatSize(m.Remaining))
	}
	if p.Rate > 0 {
		add("%s/s", formatSize(p.Rate))
	}
	if m := p.Migrate; m != nil {
		if m.Dirty > 0 {
			add("%s/s changed by the guest", formatSize(m.Dirty))
		}
		if m.Iteration > 0 {
			add("pass %d", m.Iteration)
		}
		if m.ExpectedDowntime > 0 {
			add("expected downtime %s", time.Duration(m.ExpectedDowntime)*time.Millisecond)
		}
		if m.Throttle > 0 {
			add("slowed down by %d%%", m.Throttle)
		}
		if m.PostCopy {
			add("runs at the target")
		}
	}
	if n := len(p.Moves); n > 0 {
		ended := 0
		for _, m := range p.Moves {
			if m.State.Ended() {
				ended++
			}
		}
		add("%d of %d VMs done", ended, n)
	}
	if len(parts) == 0 {
		return ""
	}
	return strings.Join(parts, ", ")
}

// moveLine says how the move of one VM is.
func moveLine(m api.Move) string {
	s := fmt.Sprintf("%s: %s to %s: %s", cmp.Or(m.VM.Name, m.VM.ID), m.From, cmp.Or(m.To, "the best node"), cmp.Or(string(m.State), "waits"))
	if m.Error != nil {
		s += ": " + m.Error.Error()
	}
	return s
}
