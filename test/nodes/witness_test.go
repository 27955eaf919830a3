package nodes

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/client"
	"github.com/nextstack/nextstack/test/stack"
)

const (
	bootTime = 2 * time.Minute // until an emulated guest answers
	// silence is how long a guest that nobody touches may be silent. It is long, because it is emulated on a machine that is
	// busy, on which pings are answered late at times; how long it was is in the log of the test.
	silence = 10 * time.Second
)

// guest is a VM with a system in it, and a port from which it is asked.
type guest struct {
	vm   *api.VM
	from *stack.Host
	port *api.Port
	qemu []stack.QEMU
}

// boot makes a guest on the host, and returns when it answers on its address.
func (w *world) boot(t *testing.T, name string, on *stack.Host) *guest {
	t.Helper()
	request := small(name, on)
	request.Memory, request.Image, request.SecurityGroups = 128*api.MiB, stack.Tiny, []string{stack.Web}
	w.succeed(t, ask(t, w, request, ""), ask(t, w, &api.PortCreate{Name: name + "-probe", Subnet: stack.Subnet}, ""))
	vm, err := client.Get[*api.VM](t.Context(), w.Client, project, name)
	require.NoError(t, err)
	port, err := client.Get[*api.Port](t.Context(), w.Client, project, name+"-probe")
	require.NoError(t, err)
	g := &guest{vm: vm, port: port, from: w.Hosts[len(w.Hosts)-1]}
	w.runsOn(t, name, on)
	g.qemu, err = w.QEMUs(vm.ID)
	require.NoError(t, err)
	begun := time.Now()
	p, err := w.StartPings(within(t, bootTime), g.from, g.port, 22, vm.Status.Addresses[0])
	require.NoError(t, err)
	t.Logf("%s answered %s after it was there", name, time.Since(begun).Round(100*time.Millisecond))
	_, err = p.Stop()
	require.NoError(t, err)
	return g
}

// ping begins to ping the guest.
func (g *guest) ping(t *testing.T, w *world) *stack.Pings {
	t.Helper()
	p, err := w.StartPings(within(t, time.Minute), g.from, g.port, 22, g.vm.Status.Addresses[0])
	require.NoError(t, err)
	return p
}

// same fails t unless the guest is the process that it was, and answered the pings all the while.
func (g *guest) same(t *testing.T, w *world, p *stack.Pings) {
	t.Helper()
	answered, err := p.Stop()
	require.NoError(t, err)
	t.Logf("%s: %s", g.vm.Name, answered)
	require.Positive(t, answered.Answered)
	require.Less(t, answered.Gap, silence, "%s was silent", g.vm.Name)
	now, err := w.QEMUs(g.vm.ID)
	require.NoError(t, err)
	require.Equal(t, g.qemu, now, "%s is not the process that it was", g.vm.Name)
}
