package crash

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/client"
	"github.com/nextstack/nextstack/test/stack"
)

// bootTime bounds how long an emulated guest may take until it answers.
const bootTime = 2 * time.Minute

// testBoot makes a VM with a system in it, and talks to that over the network, through every change of power.
func testBoot(t *testing.T, w *world) {
	probe, err := client.Create(t.Context(), w.Client, project, &api.PortCreate{Name: "probe", Subnet: stack.Subnet}, client.Write{})
	require.NoError(t, err)
	w.succeed(t, probe.ID)
	op, err := client.Create(t.Context(), w.Client, project, &api.VMCreate{
		Name: "boot", VCPUs: 1, Memory: 128 * api.MiB, Image: stack.Tiny, Pool: stack.Pool,
		NICs: []api.NICRequest{{Subnet: stack.Subnet}}, SecurityGroups: []string{stack.Web}, Hostname: "says-hello",
		UserData: "#cloud-config\nhostname: says-hello\n",
	}, client.Write{})
	require.NoError(t, err)
	w.succeed(t, op.ID)
	vm, err := client.Get[*api.VM](t.Context(), w.Client, project, "boot")
	require.NoError(t, err)
	port, err := client.Get[*api.Port](t.Context(), w.Client, project, "probe")
	require.NoError(t, err)

	ask := func(url string) (string, error) {
		return w.Probe(t.Context(), port, 22, "curl", "-sS", "-f", "-m", "3", url)
	}
	answers := func(url string) string {
		t.Helper()
		var page string
		begun := time.Now()
		require.NoError(t, stack.Poll(within(t, bootTime), 200*time.Millisecond, func() (err error) {
			page, err = ask(url)
			return err
		}))
		t.Logf("%s answered after %s", url, time.Since(begun).Round(100*time.Millisecond))
		return page
	}
	home := "http://" + vm.Status.Addresses[0] + "/"
	page := answers(home)
	require.Contains(t, page, "says-hello", "the guest did not get its seed")
	// What no rule of its security group allows is dropped on the way, so nobody even refuses it: the guest listens on port 7.
	_, err = w.Probe(t.Context(), port, 22, "timeout", "3", "bash", "-c", "exec 3<>/dev/tcp/"+vm.Status.Addresses[0]+"/7")
	require.ErrorContains(t, err, "exit status 124", "no rule allows port 7")

	power := func(want api.Phase, act func() (*api.Operation, error)) *api.Operation {
		t.Helper()
		op, err := act()
		require.NoError(t, err)
		w.succeed(t, op.ID)
		now, err := client.Get[*api.VM](t.Context(), w.Client, project, "boot")
		require.NoError(t, err)
		require.Equal(t, want, now.Status.Phase)
		running, _, err := w.Running(t.Context())
		require.NoError(t, err)
		require.Equal(t, want == api.PhaseRunning, running[vm.ID], "libvirt sees it otherwise")
		return op
	}
	// By ACPI: the guest itself writes on its console that the button was pressed.
	power(api.PhaseStopped, func() (*api.Operation, error) {
		return w.Client.StopVM(t.Context(), project, "boot", api.VMStop{Timeout: 60}, client.Write{})
	})
	console, err := w.InNode(t.Context(), "bash", "-c", "cat "+w.Path("agent", "consoles")+"/*"+vm.ID+"*")
	require.NoError(t, err)
	require.True(t, strings.Contains(console, "power button"), "the guest was not asked to power off; its console ends: %.400s", tail(console, 400))
	power(api.PhaseRunning, func() (*api.Operation, error) {
		return w.Client.StartVM(t.Context(), project, "boot", client.Write{})
	})
	answers(home)
	power(api.PhaseRunning, func() (*api.Operation, error) {
		return w.Client.RebootVM(t.Context(), project, "boot", api.VMStop{Timeout: 60}, client.Write{})
	})
	answers(home)
	w.remove(t, "boot")
	require.NoError(t, w.RemoveProbe(t.Context(), port))
	w.removeAll(t, api.KindPort, "probe")
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }
