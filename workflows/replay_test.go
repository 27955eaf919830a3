package workflows_test

import (
	"compress/gzip"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	historypb "go.temporal.io/api/history/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/workflows"
	"github.com/nextstack/nextstack/workflows/saga"
)

// The histories in testdata were recorded on a real Temporal server. A workflow that cannot replay them cannot go on with
// operations that run while the control plane is upgraded. Whoever changes a table on purpose gives the changed operation a
// version (workflow.GetVersion), or records anew: make histories.

func history(t *testing.T, path string) *historypb.History {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	zip, err := gzip.NewReader(f)
	require.NoError(t, err)
	h, err := client.HistoryFromJSON(zip, client.HistoryJSONOptions{})
	require.NoError(t, err)
	return h
}

func replayer(definitions ...saga.Definition) worker.WorkflowReplayer {
	r := worker.NewWorkflowReplayer()
	for _, d := range definitions {
		r.RegisterWorkflowWithOptions(d.Func(), workflow.RegisterOptions{Name: d.Name()})
	}
	return r
}

var quiet = slog.New(slog.DiscardHandler)

// endings are the ways in which an operation ends, as test/histories records them.
func endings(d saga.Definition) []string {
	switch {
	case len(d.Plan()) == 0 || d.Committed(1): // it cannot go back
		return []string{"done"}
	case d.Name() == api.OpVMMigrate, d.Name() == api.OpVolumeMigrate:
		return []string{"done", "undone", "cancelled", "turned"}
	case d.Name() == api.OpVolumeResize, d.Name() == api.OpVolumeFlatten: // what has grown, or stands alone, stays so
		return []string{"done", "cancelled", "turned"}
	default:
		return []string{"done", "undone", "cancelled"}
	}
}

func TestRecordedOperationsCanBeReplayed(t *testing.T) {
	r := replayer(workflows.All()...)
	for _, d := range workflows.All() {
		for _, end := range endings(d) {
			t.Run(d.Name()+" "+end, func(t *testing.T) {
				h := history(t, filepath.Join("testdata", d.Name()+"-"+end+".json.gz"))
				require.Equal(t, d.Name(), h.Events[0].GetWorkflowExecutionStartedEventAttributes().GetWorkflowType().GetName())
				require.NoError(t, r.ReplayWorkflowHistory(quiet, h))
			})
		}
	}
}

func TestEveryRecordIsOfAnOperation(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("testdata", "*"))
	require.NoError(t, err)
	kinds := map[string]bool{}
	for _, d := range workflows.All() {
		kinds[d.Name()] = true
	}
	for _, f := range files {
		kind, _, _ := strings.Cut(filepath.Base(f), "-")
		require.True(t, kinds[kind], "%s is of no operation: remove it, if none of its kind can still be running", f)
	}
}

// changed returns a copy of table with its steps changed.
func changed[S any](table saga.Table[S], change func([]saga.Step[S]) []saga.Step[S]) saga.Definition {
	table.Steps = change(append([]saga.Step[S]{}, table.Steps...))
	return table
}

func swap[S any](s []saga.Step[S]) []saga.Step[S] { s[1], s[2] = s[2], s[1]; return s }
func drop[S any](s []saga.Step[S]) []saga.Step[S] { return s[:len(s)-1] }
func more[S any](s []saga.Step[S]) []saga.Step[S] { return append(s, s[0]) }

// TestAChangedWorkflowIsNoticed shows that the replay can fail.
func TestAChangedWorkflowIsNoticed(t *testing.T) {
	for name, c := range map[string]struct {
		table saga.Definition
		file  string
	}{
		"steps in another order":  {changed(workflows.VMCreate, swap), "vm.create-done"},
		"a step less":             {changed(workflows.VMCreate, drop), "vm.create-done"},
		"a step more":             {changed(workflows.VMCreate, more), "vm.create-done"},
		"undone in another order": {changed(workflows.VMCreate, swap), "vm.create-undone"},
	} {
		t.Run(name, func(t *testing.T) {
			h := history(t, filepath.Join("testdata", c.file+".json.gz"))
			require.Error(t, replayer(c.table).ReplayWorkflowHistory(quiet, h))
		})
	}
}
