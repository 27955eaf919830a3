package command

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

func TestParseFence(t *testing.T) {
	for in, want := range map[string]api.Fence{
		"ipmi://admin@10.0.0.21":        {Driver: "ipmi", Address: "10.0.0.21", User: "admin"},
		"ipmi://admin@10.0.0.21:6230":   {Driver: "ipmi", Address: "10.0.0.21:6230", User: "admin"},
		"ipmi://ops@bmc-7.example:623/": {Driver: "ipmi", Address: "bmc-7.example:623", User: "ops"},
	} {
		got, err := parseFence(in)
		require.NoError(t, err, in)
		require.Equal(t, &want, got, in)
		r := api.AgentUpdate{Fence: got}
		require.NoError(t, r.Validate(), in)
	}
	for _, in := range []string{"", "admin@10.0.0.21", "redfish://a@b", "ipmi://10.0.0.21", "ipmi://a:secret@b", "ipmi://a@", "ipmi://a@b/c", "ipmi://a@b?x=y", "ipmi://a@b:port", "ipmi://%zz@b:secret"} {
		_, err := parseFence(in)
		require.True(t, problem.Is(err, problem.Invalid), "%s: %v", in, err)
		require.NotContains(t, err.Error(), "secret")
		require.NotEmpty(t, problem.From(err).Fix)
	}
}

// FuzzParseFence: nothing makes it panic, no password comes through, and what it takes is read back from how it is shown.
func FuzzParseFence(f *testing.F) {
	for _, s := range []string{"ipmi://admin@10.0.0.21:623", "ipmi://a:b@c", "ipmi://[::1]:623", "ipmi://u@[fe80::1]", "://"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := parseFence(s)
		if err != nil {
			require.Equal(t, problem.Invalid, problem.KindOf(err))
			return
		}
		require.Empty(t, got.Password)
		require.NotEmpty(t, got.User)
		require.NotEmpty(t, got.Address)
		if host, _, err := net.SplitHostPort(got.Address); err == nil {
			require.NotEmpty(t, host)
		}
	})
}

func TestProgressLines(t *testing.T) {
	require.Empty(t, progressLines(nil))
	require.Empty(t, progressLines(&api.Progress{Step: "compute.start"}))
	require.Equal(t, []string{"512M of 1G (50%), 512M remaining, 64M/s, 8M/s changed by the guest, pass 2, expected downtime 250ms, runs at the target"},
		progressLines(&api.Progress{Done: 512 * api.MiB, Total: api.GiB, Rate: 64 * api.MiB, Migrate: &api.MoveProgress{
			Remaining: 512 * api.MiB, Dirty: 8 * api.MiB, Iteration: 2, ExpectedDowntime: 250, PostCopy: true,
		}}))
	require.Equal(t, []string{"20M"}, progressLines(&api.Progress{Done: 20 * api.MiB}))
	require.Equal(t, []string{"1 of 3 VMs done", "  b: n1 to n2: running", "  c: n1 to the best node: stuck: it waits"}, progressLines(&api.Progress{Moves: []api.Move{
		{VM: api.Ref{Name: "a"}, Operation: "1", State: api.OpSucceeded},
		{VM: api.Ref{Name: "b"}, From: "n1", To: "n2", Operation: "2", State: api.OpRunning},
		{VM: api.Ref{Name: "c"}, From: "n1", Operation: "3", State: api.OpStuck, Error: problem.New(problem.Unavailable, "it waits")},
	}}))
	// No total can be divided by, whatever an agent tells.
	require.NotPanics(t, func() { progressLines(&api.Progress{Done: 5, Total: 1}) })
}

func TestLiveTellsOfMovesOnceAndOfBytesNowAndThen(t *testing.T) {
	var out strings.Builder
	l := newLive(&out)
	op := func(state api.OperationState, done int64) *api.Operation {
		return &api.Operation{Kind: api.OpHostDrain, State: api.OpRunning, Progress: &api.Progress{Done: done, Total: 100, Moves: []api.Move{
			{VM: api.Ref{ID: "1", Name: "web"}, From: "a", To: "b", Operation: "x", State: state},
		}}}
	}
	for i := range int64(5) {
		l.observe(op(api.OpRunning, 10+i))
	}
	l.told = time.Now().Add(-time.Minute)
	l.observe(op(api.OpSucceeded, 90))
	require.Equal(t, 1, strings.Count(out.String(), "web: a to b: running"))
	require.Equal(t, 1, strings.Count(out.String(), "web: a to b: succeeded"))
	require.Equal(t, 2, strings.Count(out.String(), "VMs done"))
}

func TestDetailsOfSteps(t *testing.T) {
	show := func(raw string) string {
		var b strings.Builder
		require.NoError(t, writeDetail(&b, "step", []byte(raw)))
		return b.String()
	}
	require.Empty(t, show(``))
	require.Empty(t, show(`null`))
	require.Empty(t, show(`[1]`))
	require.Equal(t, "\nstep: {\"odd\":1}\n", show(`{"odd":1}`))
	decision := show(`{"node":"1","name":"n1","ranked":[{"node":"1","name":"n1","score":0.75,"terms":{"spread":0.5,"image":0.25}}],"refused":[{"node":"2","name":"n2","reason":"2 of 8 vCPUs are free"}],"more":7}`)
	require.Contains(t, decision, "chosen: node n1")
	require.Contains(t, decision, "n1           0.750  image 0.250, spread 0.500")
	require.Contains(t, decision, "n2      2 of 8 vCPUs are free")
	require.Contains(t, decision, "and 7 more")
	require.Contains(t, show(`{"refused":[]}`), "no node can take it")
	require.Contains(t, show(`{"kind":"fence","detail":"the device says off","at":"2026-01-02T03:04:05Z"}`), "fence, 2026-01-02 03:04:05 UTC): the device says off")
	require.Contains(t, show(`{"total":1500000000,"downtime":42000000,"bytes":1048576,"iterations":3}`), "stood still for 42ms; 1M were sent in 1.5s, in 3 passes")
	require.Equal(t, "\nstep: the guest went on meanwhile, and stood still for 74ms; 1.478s in all\n", show(`{"live":true,"took":1478000000,"pause":73602958}`))
	require.Equal(t, "\nstep: the guest went on meanwhile; 1.478s in all\n", show(`{"live":true,"took":1478000000}`))
	require.Equal(t, "\nstep: the guest stood still for 74ms until it went on with the copy\n", show(`{"pause":73602958}`))
	require.Contains(t, show(`{"live":false,"took":2000000000}`), "copied in 2s; no guest ran with it")
	require.Contains(t, show(`{"live":false}`), "earlier attempt")
	require.Contains(t, show(`{"fetched":0,"took":41000000}`), "0 bytes of the image were copied: its pool had them; 41ms in all")
	require.Contains(t, show(`{"node":"1","name":"n1","ranked":[{"node":"1","name":"n1","score":45298483200,"terms":{"free bytes":45298483200}}]}`), "n1           42.2G  free 42.2G")
	require.Contains(t, show(`{"total":0,"downtime":0,"bytes":0,"iterations":0}`), "had left before")
	plan := show(`{"moves":[{"vm":{"name":"web"},"from":"a","to":"b","kind":"live","state":"succeeded"}],"stays":[{"vm":{"name":"db"},"from":"a","reason":"pinned"}]}`)
	require.Contains(t, plan, "1 to move, 1 stay")
	require.Regexp(t, `db +a +- +- +stays +pinned`, plan)
	require.Contains(t, show(`{"moves":"none"}`), `{"moves":"none"}`, "what cannot be read is shown as it is")
}

func TestWhole(t *testing.T) {
	n, err := whole(1500*time.Millisecond, time.Millisecond, "max-downtime")
	require.NoError(t, err)
	require.Equal(t, 1500, n)
	for _, d := range []time.Duration{-time.Second, 1500 * time.Millisecond} {
		_, err := whole(d, time.Second, "timeout")
		require.True(t, problem.Is(err, problem.Invalid))
	}
}
