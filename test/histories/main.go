// Histories records how each operation runs on a real Temporal server: done, undone and cancelled,
// as far as it can end so. The histories are what
// `go test ./workflows` replays, so that a change of a workflow that running operations would not survive is noticed.
//
//	go run ./test/histories [-only KIND] [-out workflows/testdata]
//
// Record anew only what was changed on purpose, and only when no operation of the old form can still be running.
package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	historypb "go.temporal.io/api/history/v1"
	"go.temporal.io/api/temporalproto"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/worker"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
	"github.com/nextstack/nextstack/test/fault"
	"github.com/nextstack/nextstack/workers/control"
	"github.com/nextstack/nextstack/workers/engine"
	"github.com/nextstack/nextstack/workflows"
	"github.com/nextstack/nextstack/workflows/saga"
	"github.com/nextstack/nextstack/workflows/steps"
)

func main() {
	out := flag.String("out", filepath.Join("workflows", "testdata"), "directory to write to")
	only := flag.String("only", "", "one kind of operation; empty: all")
	flag.Parse()
	if err := record(context.Background(), *out, *only); err != nil {
		fmt.Fprintln(os.Stderr, "histories:", err)
		os.Exit(1)
	}
}

// The ways in which an operation is made to end.
const (
	done      = "done"
	undone    = "undone"
	cancelled = "cancelled"
	turned    = "turned" // it goes back, finds that it cannot, and goes on to its end
)

// endings returns the ways in which an operation can be made to end.
func endings(d saga.Definition) []string {
	switch {
	case len(d.Plan()) == 0 || d.Committed(1): // it cannot go back
		return []string{done}
	case d.Name() == api.OpVMMigrate, d.Name() == api.OpVolumeMigrate:
		return []string{done, undone, cancelled, turned}
	case d.Name() == api.OpVolumeResize, d.Name() == api.OpVolumeFlatten: // what has grown, or stands alone, stays so
		return []string{done, cancelled, turned}
	default:
		return []string{done, undone, cancelled}
	}
}

func record(ctx context.Context, out, only string) error {
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "histories-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)              //nolint:errcheck // nothing in it is needed
	log := slog.New(slog.DiscardHandler) // most steps that fail here are made to; what matters is returned
	eng, err := engine.Start(ctx, engine.Config{DataDir: dir, Logger: log})
	if err != nil {
		return err
	}
	defer eng.Stop(ctx) //nolint:errcheck // the process ends anyway
	base, err := fault.Base(ctx)
	if err != nil {
		return err
	}
	all := fault.Scenarios()
	for _, d := range workflows.All() {
		if only != "" && only != d.Name() {
			continue
		}
		s := all[d.Name()][0]
		prepared, err := s.World(ctx, base)
		if err != nil {
			return err
		}
		for _, end := range endings(d) {
			r := &recorder{eng: eng, log: log, table: d, end: end, tried: map[string]int{}}
			history, err := r.run(ctx, prepared, s.Accept)
			if err != nil {
				return fmt.Errorf("%s, %s: %w", d.Name(), end, err)
			}
			if err := write(filepath.Join(out, d.Name()+"-"+end+".json.gz"), history); err != nil {
				return err
			}
		}
	}
	return nil
}

// recorder runs one operation on the engine. It is the hook that makes it end as it shall.
type recorder struct {
	eng     *engine.Engine
	log     *slog.Logger
	table   saga.Definition
	end     string
	control *control.Control

	mu    sync.Mutex
	tried map[string]int // attempts by step
}

// failing returns the step that is made to fail: the last one that can be undone, of those that make a call and whose failure
// is the operation's. That a move fails which was ordered is not, and one that was made may not be undone.
func (r *recorder) failing() string {
	last := ""
	for i, s := range r.table.Plan() {
		switch {
		case r.end == turned && (s.Name == "move" || s.Name == "grow" || s.Name == "flatten" || s.Name == "copy"):
			return s.Name
		case !r.table.Committed(i+1) && s.Name != "move" && !r.arrives(s.Name) && s.Name != "repair": // without findings a repair makes no call
			last = s.Name
		}
	}
	return last
}

// arrives reports whether a step of a volume's move may turn out to have happened, so that its failure ends nothing, or makes no
// call unless the volume is a root disk.
func (r *recorder) arrives(step string) bool {
	return r.table.Name() == api.OpVolumeMigrate && (step == "copy" || step == "seed")
}

// spared reports whether an attempt is not what is recorded: bookkeeping, or a step of an operation that this one has ordered.
func (r *recorder) spared(t steps.Token) bool { return bookkeeping(t) || t.Kind != r.table.Name() }

func bookkeeping(t steps.Token) bool { return t.Step == "journal" || t.Step == "settle" }

// Before cancels the operation while its first step cannot be done.
func (r *recorder) Before(ctx context.Context, t steps.Token) error {
	if r.end != cancelled || t.Undo || r.spared(t) || t.Step != r.table.Plan()[0].Name {
		return nil
	}
	r.mu.Lock()
	r.tried[t.Step]++
	n := r.tried[t.Step]
	r.mu.Unlock()
	if n == 1 {
		if err := r.control.Cancel(ctx, t.Operation); err != nil {
			return err
		}
	}
	return problem.New(problem.Unavailable, "the operation is cancelled while this step cannot be done")
}

// After makes the last step that can be undone fail when it has been done.
func (r *recorder) After(_ context.Context, t steps.Token, err error) error {
	if (r.end == undone || r.end == turned) && !t.Undo && !r.spared(t) && t.Step == r.failing() && err == nil {
		return problem.New(problem.Invalid, "this step is made to fail")
	}
	return err
}

// Repeat implements activities.Hook.
func (r *recorder) Repeat(steps.Token) int { return 1 }

func (r *recorder) run(ctx context.Context, prepared *fault.World, accept fault.Accept) (*historypb.History, error) {
	w, err := prepared.Clone(ctx, r)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	r.control = control.New(control.Config{
		KV: w.KV, Temporal: r.eng.Temporal(), Namespace: r.eng.Namespace(), Register: w.RegisterControl, Log: r.log,
	})
	stopped := make(chan error, 1)
	go func() { stopped <- r.control.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-stopped; err != nil {
			r.log.Warn("the worker ended badly", "error", err)
		}
	}()
	for _, n := range w.Nodes {
		if !n.Alive() {
			continue
		}
		agent := worker.New(r.eng.Temporal(), steps.NodeQueue(n.ID), worker.Options{DisableRegistrationAliasing: true})
		n.Register(agent)
		if err := agent.Start(); err != nil {
			return nil, err
		}
		defer agent.Stop()
	}
	op, err := accept(ctx, w, w.User)
	if err != nil {
		return nil, err
	}
	state, err := r.wait(ctx, w, op)
	if err != nil {
		return nil, err
	}
	want := map[string]api.OperationState{done: api.OpSucceeded, undone: api.OpFailed, cancelled: api.OpCancelled, turned: api.OpSucceeded}[r.end]
	if state != want {
		return nil, fmt.Errorf("it is %s instead of %s", state, want)
	}
	fmt.Printf("%s: %s\n", op.Kind, state)
	return r.history(ctx, op.ID)
}

// wait follows the operation's record to its end.
func (r *recorder) wait(ctx context.Context, w *fault.World, op *api.Operation) (api.OperationState, error) {
	key := store.Key(api.KindOperation, "", op.ID)
	for ch := range w.KV.Watch(ctx, key, 0) {
		if err := store.Decode(ch.Entry, op); err != nil {
			return "", err
		}
		if op.State.Ended() {
			return op.State, nil
		}
	}
	return op.State, errors.New("it did not end in time")
}

// history waits until the workflow is closed, which is a moment after its operation has ended, and returns what it did.
func (r *recorder) history(ctx context.Context, id string) (*historypb.History, error) {
	out := &historypb.History{}
	events := r.eng.Temporal().GetWorkflowHistory(ctx, id, "", true, enumspb.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT)
	for events.HasNext() {
		e, err := events.Next()
		if err != nil {
			return nil, err
		}
		out.Events = append(out.Events, e)
	}
	return out, nil
}

var identities = regexp.MustCompile(`"identity":\s*"[^"]*"`)

// write stores a history without what it says of the machine that it was recorded on.
func write(path string, h *historypb.History) error {
	text, err := temporalproto.CustomJSONMarshalOptions{Indent: " "}.Marshal(h)
	if err != nil {
		return err
	}
	clean := identities.ReplaceAllString(string(text), `"identity": "worker"`)
	if host, err := os.Hostname(); err == nil {
		clean = strings.ReplaceAll(clean, `"`+host+`:`, `"host:`) // in the names of sticky queues
	}
	if _, err := client.HistoryFromJSON(strings.NewReader(clean), client.HistoryJSONOptions{}); err != nil {
		return err
	}
	var buf bytes.Buffer
	zip := gzip.NewWriter(&buf)
	if _, err := zip.Write([]byte(clean)); err != nil {
		return err
	}
	if err := zip.Close(); err != nil {
		return err
	}
	return os.WriteFile(path, buf.Bytes(), 0o644)
}
