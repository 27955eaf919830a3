package command

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

func TestYAMLKeepsOrderAndTypes(t *testing.T) {
	in := `{"z":"1","a":1,"yes":"yes","no":false,"null":null,"text":"null","e":"1e3","f":1.5,"big":9007199254740993,"date":"2026-01-02","hex":"0x1f",
"empty":{},"none":[],"list":[{"a":1,"b":[2]},"x: y","- a","#c"," lead","multi\nline\n","","tab\t","quote'\"","ünïcode €"]}`
	out, err := yamlFromJSON([]byte(in))
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(string(out), "z: \"1\"\na: 1\n"), "%s", out)
	requireSame(t, in, out)
}

// requireSame checks that a YAML document means what a JSON document means.
func requireSame(t *testing.T, in string, out []byte) {
	t.Helper()
	var want, got any
	require.NoError(t, json.Unmarshal([]byte(in), &want))
	require.NoError(t, yaml.Unmarshal(out, &got), "%s", out)
	back, err := json.Marshal(got)
	require.NoError(t, err, "%s", out)
	canonical, err := json.Marshal(want)
	require.NoError(t, err)
	require.JSONEq(t, string(canonical), string(back), "%s", out)
}

// FuzzYAML: any string, as a value and as a key, survives the way from JSON to YAML and back.
func FuzzYAML(f *testing.F) {
	for _, s := range []string{"", "null", "~", "yes", "1e3", "0o7", "a: b", "\n", "a\n b\n\n", "!!int 1", "%", "\u2028", "\x00", "\ufeff", "=", "<<", "-", "2026-01-02"} {
		f.Add(s, int64(1))
	}
	f.Fuzz(func(t *testing.T, s string, n int64) {
		s = strings.ToValidUTF8(s, "?")
		in, err := json.Marshal(map[string]any{"k" + s: []any{s, n, map[string]any{"x": s}}, "n": []string{s}})
		require.NoError(t, err)
		out, err := yamlFromJSON(in)
		require.NoError(t, err)
		requireSame(t, string(in), out)
	})
}

func TestYAMLRefusesWhatIsNotOneDocument(t *testing.T) {
	for _, in := range []string{"", "{", `{"a":1} 2`, "[1,"} {
		_, err := yamlFromJSON([]byte(in))
		require.Error(t, err, in)
	}
}

func TestShortDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 40 * time.Millisecond: "0s", 1540 * time.Millisecond: "1.5s", 42 * time.Second: "42s", 90 * time.Second: "1m30s",
		time.Hour: "1h", 125 * time.Minute: "2h5m", 76 * time.Hour: "3d4h",
	} {
		require.Equal(t, want, shortDuration(d))
	}
}

func TestCellsStayInTheirRow(t *testing.T) {
	var b bytes.Buffer
	a := &app{Env: Env{Stdout: &b}, output: formatTable}
	cols := []column[string]{col("A", text), col("B", func(string) cell { return cell{} })}
	require.NoError(t, printList(t.Context(), a, cols, []string{"x\ny\tz\x1b[31m"}))
	require.Equal(t, "A           B\nx y z [31m  -\n", b.String())
}

// an operation as it is seen at some moments of its life
func moments() []*api.Operation {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	op := func(s api.OperationState, steps ...api.StepRecord) *api.Operation {
		return &api.Operation{
			Meta: api.Meta{ID: "op-1", Created: at}, Kind: "vm.create", State: s, Steps: steps, Target: api.Ref{Kind: api.KindVM, Name: "web"},
		}
	}
	step := func(name, where string, s api.StepState, attempts int, took time.Duration, err *problem.Problem) api.StepRecord {
		r := api.StepRecord{Name: name, Where: where, State: s, Attempts: attempts, Error: err}
		if took > 0 {
			r.Started, r.Ended = at, at.Add(took)
		}
		return r
	}
	away := problem.New(problem.Unavailable, "node-1 is away").Because("no heartbeat")
	place := step("place", "control", api.StepDone, 1, 300*time.Millisecond, nil)
	stuck := op(api.OpStuck, place, step("volume", "node-1", api.StepFailed, 3, time.Second, away))
	stuck.Error = away
	ended := op(api.OpSucceeded, place, step("volume", "node-1", api.StepDone, 4, 2*time.Second, away))
	ended.Ended = at.Add(5 * time.Second)
	return []*api.Operation{
		op(api.OpAccepted, step("place", "control", api.StepPending, 0, 0, nil), step("volume", "node-1", api.StepPending, 0, 0, nil)),
		op(api.OpRunning, place, step("volume", "node-1", api.StepPending, 0, 0, nil)),
		op(api.OpRunning, place, step("volume", "node-1", api.StepPending, 0, 0, nil)),
		stuck, stuck, ended,
	}
}

func TestLiveLines(t *testing.T) {
	var b bytes.Buffer
	l := newLive(&b)
	for _, op := range moments() {
		l.observe(op)
	}
	require.Equal(t, `vm.create of vm web (operation op-1)
  [1/2] place: done (0.3s)
  [2/2] volume: failed (on node-1, 1s, attempt 3): node-1 is away: no heartbeat
  stuck: node-1 is away: no heartbeat; it keeps trying, and `+"`gnext op resume op-1`"+` hurries it
  [2/2] volume: done (on node-1, 2s, attempt 4)
`, b.String())
}

func TestLiveDrawing(t *testing.T) {
	var b bytes.Buffer
	l := &live{out: &b, width: 60}
	var screens []string
	for _, op := range moments() {
		b.Reset()
		l.observe(op)
		screens = append(screens, b.String())
	}
	require.Equal(t, "vm.create of vm web: accepted\n  · place: pending\n  · volume: pending (on node-1)\n", screens[0])
	require.Equal(t, "\x1b[3A\x1b[Jvm.create of vm web: running\n  ✓ place: done (0.3s)\n  · volume: pending (on node-1)\n", screens[1])
	require.Equal(t, "\x1b[3A\x1b[Jvm.create of vm web: stuck\n  ✓ place: done (0.3s)\n"+
		"  ✗ volume: failed (on node-1, 1s, attempt 3): node-1 is a…\n  stuck: node-1 is away: no heartbeat; it keeps trying, an…\n", screens[3])
	require.Equal(t, "\x1b[4A\x1b[Jvm.create of vm web: succeeded in 5s\n  ✓ place: done (0.3s)\n  ✓ volume: done (on node-1, 2s, attempt 4)\n", screens[5])
}

func TestNearest(t *testing.T) {
	a := &app{Env: Env{Getenv: func(string) string { return "" }}}
	for in, want := range map[string]string{"lst": "list", "ad": "add", "dlete": "delete", "POWEROFF": "poweroff", "x": "", "frobnicate": "", "remove": ""} {
		require.Equal(t, want, nearest(a.vmCmd(), in), in)
	}
	require.Equal(t, 3, distance("kitten", "sitting"))
}
