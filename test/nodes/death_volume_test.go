package nodes

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/client"
	"github.com/nextstack/nextstack/test/stack"
)

// otherShared is another pool that all nodes see.
const otherShared = "shared2"

// TestVolumesWhoseNodeDies takes the power from the node of an HA guest while its disk goes to another pool: while it is copied, while the guest
// stands still with the copy, and when it has gone on with it. The guest runs elsewhere then, with all that it was told to be on its disk.
func TestVolumesWhoseNodeDies(t *testing.T) {
	d := &dying{world: &world{Stack: stack.Up(t, stack.Options{Nodes: 3, Shared: true})}}
	last := d.Hosts[len(d.Hosts)-1]
	d.changeHost(t, last, &api.AgentUpdate{Cordoned: ptr(true)})
	require.NoError(t, os.Mkdir(d.Path(otherShared), 0o755))
	op, err := client.Create(t.Context(), d.Client, "", &api.PoolCreate{Name: otherShared, Type: api.PoolDir, Path: d.Path(otherShared), Shared: true}, client.Write{})
	require.NoError(t, err)
	d.succeed(t, op.ID)
	d.tally = d.startTally(t, last)
	for _, c := range []struct {
		name string
		at   stack.Point // empty: in the middle of the copy
		then api.OperationState
	}{
		{"InTheCopy", stack.Point{}, api.OpFailed},
		{"StandingStill", stack.Point{Kind: api.OpVolumeMigrate, Step: "copy", At: stack.After}, api.OpFailed},
		{"GoneOn", stack.Point{Kind: api.OpVolumeMigrate, Step: "switch", At: stack.After}, api.OpSucceeded},
	} {
		ok := t.Run(c.name, func(t *testing.T) {
			begun := time.Now()
			writers := d.watch(t, d.tally.vm)
			d.diesUnderVolume(t, c.at, c.then)
			d.tally.check(t, d)
			writers.never2(t)
			d.clean(t)
			t.Logf("%s took %s", c.name, time.Since(begun).Round(100*time.Millisecond))
		})
		if !ok {
			return
		}
	}
}

func (d *dying) diesUnderVolume(t *testing.T, at stack.Point, then api.OperationState) {
	dead, _ := d.at(t, d.tally.name)
	v := d.tally.volume(t, d)
	pool, err := client.Get[*api.Pool](t.Context(), d.Client, "", v.Spec.Pool)
	require.NoError(t, err)
	how := api.VolumeMigrate{Pool: otherShared}
	if pool.Name == otherShared {
		how.Pool = stack.Shared
	}
	if at == (stack.Point{}) {
		how.Bandwidth = 2 * api.MiB
	} else {
		require.NoError(t, d.Faults.Arm(at))
	}
	op, err := d.Client.MigrateVolume(t.Context(), project, v.ID, how, client.Write{})
	require.NoError(t, err)
	file := d.Path(how.Pool, "volumes", op.ID+".qcow2")
	told, life := 0, 0
	switch at.Step {
	case "":
		require.NoError(t, stack.Poll(within(t, time.Minute), 50*time.Millisecond, func() error {
			info, err := os.Stat(file)
			if err == nil && info.Size() < 4*api.MiB {
				err = fmt.Errorf("%d bytes are there", info.Size())
			}
			return err
		}), "it is not copied")
		told, life = d.tally.records(t, d)
	case "copy":
		require.NoError(t, d.Faults.Await(within(t, time.Minute), at))
		told, life = d.tally.records(t, d)
		for range 10 { // it would have written more between two of them
			there, _ := recordsIn(t, file)
			require.Equal(t, told, there, "it has gone on, and nobody has written down that it may")
		}
	case "switch":
		require.NoError(t, d.Faults.Await(within(t, time.Minute), at))
		before, _ := d.tally.records(t, d)
		require.NoError(t, stack.Poll(within(t, time.Minute), 100*time.Millisecond, func() error {
			if told, life = recordsIn(t, file); told <= before+5 {
				return fmt.Errorf("%d records after %d", told, before)
			}
			return nil
		}), "it does not go on with the copy")
	}
	begun := d.powerCut(t, dead)
	if at != (stack.Point{}) {
		require.True(t, d.Faults.Held(at), "%s was not held long enough", at)
		require.NoError(t, d.Faults.Release(at))
	}
	ops, err := d.Ended(within(t, patience), op.ID)
	require.NoError(t, err)
	require.Equal(t, then, ops[op.ID].State, stack.Describe(ops[op.ID]))
	t.Logf("the move was %s %s after the power cut", then, time.Since(begun).Round(100*time.Millisecond))
	t.Logf("the guest answered elsewhere after %s", d.tally.answers(t, d, begun))
	d.elsewhere(t, d.tally.name, dead)
	d.tally.counts(t, d, life)
	n, _ := d.tally.records(t, d)
	require.GreaterOrEqual(t, n, told, "records are lost that the guest was told to be on its disk")
	moved := d.tally.volume(t, d).Status.Layer == op.ID
	require.Equal(t, then == api.OpSucceeded, moved)
	d.powerOn(t, dead)
}
