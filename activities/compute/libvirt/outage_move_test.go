package libvirt_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/activities/compute/computetest"
	"github.com/nextstack/nextstack/activities/compute/libvirt"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// TestOutageOfMove takes away, in the middle of a move, each of those who carry it out.
func TestOutageOfMove(t *testing.T) {
	if os.Getenv("NEXTSTACK_TEST_SANDBOX_NODE") == "" {
		t.Skip("SKIPPED, NOT TESTED: moves whose libvirtd is killed. Set NEXTSTACK_TEST_SANDBOX_NODE to say that the nodes a and b of the sandbox are for this test alone, " +
			"and NEXTSTACK_TEST_SANDBOX and NEXTSTACK_TEST_IMAGE as the other tests want them")
	}
	nodes := computetest.Sandbox(t, "a", "b")
	t.Cleanup(func() { nodes.Do(t, "libvirtd", "a"); nodes.Do(t, "libvirtd", "b") })
	r := nodes.Rig(t)
	t.Run("source's libvirtd", func(t *testing.T) { killed(t, nodes, r, "a") })
	t.Run("target's libvirtd", func(t *testing.T) { killed(t, nodes, r, "b") })
	t.Run("agent", func(t *testing.T) { agentKilled(t, nodes, r) })
	t.Run("at any moment", func(t *testing.T) { killedAnywhere(t, nodes, r) })
	paused := nodes.PausedRig(t)
	t.Run("source's libvirtd, of a guest that stands still", func(t *testing.T) { killed(t, nodes, paused, "a") })
	t.Run("target's libvirtd, of a guest that stands still", func(t *testing.T) { killed(t, nodes, paused, "b") })
}

func prepare(t *testing.T, from, to compute.Driver, g computetest.Guest) steps.MoveDomain {
	t.Helper()
	leaving, err := from.Describe(t.Context(), g.Plan.VM)
	require.NoError(t, err)
	in, err := to.CheckIncoming(t.Context(), steps.IncomingRequest{Plan: g.Plan, Leaving: leaving}, g.To)
	require.NoError(t, err)
	return steps.MoveDomain{Plan: g.Plan, Incoming: in, Timeout: time.Minute}
}

func killed(t *testing.T, nodes *computetest.Nodes, r computetest.Rig, who string) {
	g := r.Boot(t, true, false)
	m := prepare(t, r.A, r.B, g)
	slow := m
	r.Slow(&slow)
	done, news := computetest.Go(t.Context(), r.A, slow)
	computetest.UnderWay(t, done, news)
	nodes.Do(t, "kill-libvirtd", who)
	out := computetest.Over(t, done)
	t.Log(out.Err)
	require.Error(t, out.Err)
	require.True(t, problem.TraitsOf(problem.KindOf(out.Err)).Retry, "it passes: %v", out.Err)
	nodes.Do(t, "libvirtd", who)
	require.NoError(t, settle(t, r.A, r.B, g))
	r.AtSource(t, g.Plan.VM)

	done, news = computetest.Go(t.Context(), r.A, slow)
	computetest.UnderWay(t, done, news)
	nodes.Do(t, "kill-libvirtd", who)
	require.Error(t, computetest.Over(t, done).Err)
	nodes.Do(t, "libvirtd", who)
	require.Eventually(t, func() bool { // as the saga repeats the step
		_, err := r.A.Migrate(t.Context(), m, nil)
		return err == nil
	}, 30*time.Second, 200*time.Millisecond)
	r.AtTarget(t, g.Plan.VM)
}

// settle does what the workflow does after a move that went wrong. It returns errMoved if the guest has arrived.
func settle(t *testing.T, from, to compute.Driver, g computetest.Guest) error {
	t.Helper()
	ctx, vm := t.Context(), g.Plan.VM
	src, err := from.Settle(ctx, vm)
	require.NoError(t, err)
	if src.Exists && src.Phase == api.PhaseRunning {
		return to.Remove(ctx, vm)
	}
	dst, err := to.Look(ctx, vm)
	require.NoError(t, err)
	t.Logf("source %+v, target %+v", src, dst)
	if dst.Exists && dst.Phase == api.PhaseRunning {
		require.NoError(t, from.Remove(ctx, vm))
		return errMoved
	}
	require.False(t, src.Broken, "there was no post-copy")
	if err := to.Remove(ctx, vm); err != nil {
		return err
	}
	_, err = from.Start(ctx, vm)
	return err
}

var errMoved = errors.New("the guest has moved")

// killedAnywhere kills one side or the other at moments around the switch, when for a while no side knows all.
func killedAnywhere(t *testing.T, nodes *computetest.Nodes, r computetest.Rig) {
	g := r.Boot(t, true, false)
	names := [2]string{"a", "b"}
	drivers := [2]compute.Driver{r.A, r.B}
	at := 0
	for i := range 12 {
		from, to := drivers[at], drivers[1-at]
		m := prepare(t, from, to, g)
		victim, after := names[i%2], time.Duration(i/2)*70*time.Millisecond
		pid, err := strconv.Atoi(nodes.Do(t, "libvirtd-pid", victim))
		require.NoError(t, err)
		done, _ := computetest.Go(t.Context(), from, m)
		require.Eventually(t, func() bool {
			p, err := from.State(t.Context(), g.Plan.VM)
			return err != nil || p != api.PhaseRunning || len(done) > 0
		}, time.Minute, 5*time.Millisecond)
		<-time.After(after) // the moment is what is tested
		require.NoError(t, unix.Kill(pid, unix.SIGKILL))
		nodes.Do(t, "kill-libvirtd", victim)
		nodes.Do(t, "libvirtd", victim)
		out := computetest.Over(t, done)
		moved := out.Err == nil
		if !moved {
			err := settle(t, from, to, g)
			if moved = errors.Is(err, errMoved); !moved {
				require.NoError(t, err)
			}
		}
		t.Logf("%s (source %s) killed %s after the switch: moved %v, %v", victim, names[at], after, moved, out.Err)
		if moved {
			at = 1 - at
		}
		if at == 0 {
			r.AtSource(t, g.Plan.VM)
		} else {
			r.AtTarget(t, g.Plan.VM)
		}
	}
}

// agentKilled: libvirtd goes on with the move, and the next agent joins it.
func agentKilled(t *testing.T, nodes *computetest.Nodes, r computetest.Rig) {
	g := r.Boot(t, true, false)
	m := prepare(t, r.A, r.B, g)
	m.Bandwidth = 16 * api.MiB
	job, err := json.Marshal(agentJob{Options: nodes.Options(t, 0).URI, Move: m})
	require.NoError(t, err)
	agent := exec.Command(os.Args[0], "-test.run=^TestAgentThatIsKilled$")
	agent.Env = append(os.Environ(), "NEXTSTACK_TEST_AGENT="+string(job))
	out, err := agent.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, agent.Start())
	lines := bufio.NewScanner(out)
	for lines.Scan() && lines.Text() != underWay {
	}
	require.Equal(t, underWay, lines.Text())
	require.NoError(t, agent.Process.Kill())
	require.Error(t, agent.Wait())

	moved, err := r.A.Migrate(t.Context(), m, nil)
	require.NoError(t, err)
	t.Logf("joined: %+v", moved)
	require.Greater(t, moved.Total, 2*time.Second, "the time before counts")
	require.Positive(t, moved.Downtime)
	r.AtTarget(t, g.Plan.VM)
}

type agentJob struct {
	Options string
	Move    steps.MoveDomain
}

const underWay = "the move is under way"

// TestAgentThatIsKilled is the process that agentKilled kills.
func TestAgentThatIsKilled(t *testing.T) {
	job := os.Getenv("NEXTSTACK_TEST_AGENT")
	if job == "" {
		return // it is no test by itself
	}
	var j agentJob
	require.NoError(t, json.Unmarshal([]byte(job), &j))
	d := libvirt.New(libvirt.Options{URI: j.Options})
	_, err := d.Migrate(context.Background(), j.Move, func(api.Progress) { fmt.Printf("\n%s\n", underWay) })
	t.Fatalf("it was not killed: %v", err)
}
