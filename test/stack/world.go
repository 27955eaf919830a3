package stack

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/client"
)

// Audit runs an audit and returns what it found.
func (s *Stack) Audit(t testing.TB) *api.AuditReport {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	op, err := s.Client.Audit(ctx, api.AuditRequest{}, client.Write{})
	if err == nil {
		op, err = s.Client.Wait(ctx, op.ID, client.WaitOptions{})
	}
	if err != nil {
		t.Fatalf("audit: %v", err)
	}
	if op.State != api.OpSucceeded {
		t.Fatalf("the audit ended %s: %v", op.State, op.Error)
	}
	var r api.AuditReport
	if err := json.Unmarshal(op.Result, &r); err != nil {
		t.Fatalf("the audit's result: %v: %s", err, op.Result)
	}
	return &r
}

// MustBeClean fails t if anything is left over or missing, as an audit sees it and as each node itself shows it, or if the audit
// could not look everywhere. It returns the number of findings.
func (s *Stack) MustBeClean(t testing.TB) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	// Polled, because the record of a node follows its ledger with the next report.
	var found []string
	err := Poll(ctx, 200*time.Millisecond, func() (err error) {
		found, err = s.Leaks(ctx)
		if len(found) > 0 {
			return fmt.Errorf("left over: %v", found)
		}
		return err
	})
	if err != nil && len(found) == 0 {
		t.Errorf("looking for what is left over: %v", err)
	}
	for _, leak := range found {
		t.Errorf("left over: %s", leak)
	}
	r := s.Audit(t)
	for _, f := range r.Findings {
		t.Errorf("audit: %s %s %s extra=%t: %s; fix: %s", f.Side, f.Kind, f.ID, f.Extra, f.Problem, f.Fix)
	}
	for _, skip := range r.Skipped {
		t.Errorf("audit: not asked: %s", skip)
	}
	if len(r.Checked) == 0 {
		t.Errorf("the audit looked at nothing: %+v", r)
	}
	return len(r.Findings) + len(found)
}

// Running returns the IDs of the domains that libvirt itself says are running, on any node that has power, and how many domains
// there are in all.
func (s *Stack) Running(ctx context.Context) (running map[string]bool, all int, err error) {
	running = map[string]bool{}
	for _, h := range s.Hosts {
		if !h.Powered() {
			continue
		}
		domains, err := h.Domains(ctx)
		if err != nil {
			return nil, 0, err
		}
		all += len(domains)
		for id, runs := range domains {
			if runs {
				running[id] = true
			}
		}
	}
	return running, all, nil
}

// Probe runs a program in the first node with the address of a port, as if a machine were plugged in there, and returns what it
// wrote. Bits is the length of the subnet's prefix.
func (s *Stack) Probe(ctx context.Context, p *api.Port, bits int, argv ...string) (string, error) {
	args := []string{s.script("probe.sh"), Node, p.ID, p.Spec.MAC, fmt.Sprintf("%s/%d", p.Spec.Address, bits)}
	return command(ctx, environment(s.sandbox...), append(args, argv...)...)
}

// RemoveProbe removes what Probe made.
func (s *Stack) RemoveProbe(ctx context.Context, p *api.Port) error {
	_, err := command(ctx, environment(s.sandbox...), s.script("probe.sh"), "--rm", Node, p.ID)
	return err
}

// Ended waits until the operations have ended and returns them as they are then.
func (s *Stack) Ended(ctx context.Context, ids ...string) (map[string]*api.Operation, error) {
	out := map[string]*api.Operation{}
	for _, id := range ids {
		op, err := s.Client.Wait(ctx, id, client.WaitOptions{})
		if err != nil {
			return out, fmt.Errorf("operation %s: %w; last seen: %s", id, err, Describe(op))
		}
		out[id] = op
	}
	return out, nil
}

// Describe says in one line where an operation is.
func Describe(op *api.Operation) string {
	if op == nil {
		return "never seen"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s %s %s:", op.ID, op.Kind, op.Target.Name, op.State)
	for _, st := range op.Steps {
		fmt.Fprintf(&b, " %s=%s/%d", st.Name, st.State, st.Attempts)
		if st.Error != nil {
			fmt.Fprintf(&b, " (%v)", st.Error)
		}
	}
	if op.Error != nil {
		fmt.Fprintf(&b, " error: %v", op.Error)
	}
	return b.String()
}

// ExportRBD writes what a volume in a Ceph pool shows, or one of its snapshots, into a file.
func (s *Stack) ExportRBD(ctx context.Context, p *api.Pool, volume, snapshot, file string) error {
	what := p.Spec.Source.Name + "/disk-" + volume
	if snapshot != "" {
		what += "@snap-" + snapshot
	}
	_, err := s.rbd(ctx, "export", "--no-progress", what, file)
	return err
}

// rbd runs Ceph's own tool, as the administrator of the stack's cluster.
func (s *Stack) rbd(ctx context.Context, args ...string) (string, error) {
	return s.sandboxDo(ctx, append([]string{"control", "rbd", "-c", s.path("s", "ceph", "ceph.conf")}, args...)...)
}
