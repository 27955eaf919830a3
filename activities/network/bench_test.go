package network

import (
	"fmt"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/workflows/steps"
)

func benchPort(i int) steps.PortWiring {
	return steps.PortWiring{
		Port: uid(10000 + i), Project: "default", Subnet: uid(10), MAC: fmt.Sprintf("52:54:00:%02x:%02x:%02x", i>>16, i>>8&255, i&255),
		Address: fmt.Sprintf("10.2.%d.%d", i>>8&255, i&255), Hostname: fmt.Sprintf("vm%d", i), SecurityGroups: []string{uid(21)},
	}
}

// benchWorld has one big subnet with n ports already in it.
func benchWorld(b *testing.B, n int) (*server, *OVN) {
	s, o := newTestOVN(b)
	ctx := testContext(b)
	w := aWorld()
	w.vpc.CIDR = "10.0.0.0/8"
	require.NoError(b, o.WireVPC(ctx, w.vpc))
	require.NoError(b, o.WireSubnet(ctx, steps.SubnetWiring{Subnet: uid(10), Name: "big", Project: "default", VPC: uid(1), CIDR: "10.2.0.0/16", Gateway: "10.2.255.254"}))
	require.NoError(b, o.WireSecurityGroup(ctx, w.groups[0]))
	for i := 1; i <= n; i += 100 {
		var batch []steps.PortWiring
		for j := i; j < i+100 && j <= n; j++ {
			batch = append(batch, benchPort(j))
		}
		require.NoError(b, o.WirePorts(ctx, batch))
	}
	return s, o
}

func BenchmarkWirePort(b *testing.B) {
	for _, n := range []int{0, 1000, 5000} {
		b.Run(fmt.Sprintf("beside-%d", n), func(b *testing.B) {
			_, o := benchWorld(b, n)
			i := 20000
			for b.Loop() {
				i++
				if err := o.WirePorts(b.Context(), []steps.PortWiring{benchPort(i)}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkWirePortAgain(b *testing.B) {
	_, o := benchWorld(b, 1)
	for b.Loop() {
		if err := o.WirePorts(b.Context(), []steps.PortWiring{benchPort(1)}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkNbctl does what WirePorts does for one port with the command-line tool, for comparison.
func BenchmarkNbctl(b *testing.B) {
	tool, err := exec.LookPath("ovn-nbctl")
	if err != nil {
		b.Skip("NOT MEASURED: there is no ovn-nbctl; install the package ovn-central")
	}
	s, _ := benchWorld(b, 0)
	i := 30000
	for b.Loop() {
		i++
		p := benchPort(i)
		address := p.MAC + " " + p.Address
		out, err := exec.Command(tool, "--no-leader-only", "--db="+s.endpoint(),
			"lsp-add", switchName(p.Subnet), p.Port, "--", "lsp-set-addresses", p.Port, address, "--", "lsp-set-port-security", p.Port, address,
			"--", "lsp-set-dhcpv4-options", p.Port, dhcpRow(p.Subnet), "--", "set", "logical_switch_port", p.Port, "external_ids:"+keyID+"="+p.Port,
			"--", "--id=@p", "get", "logical_switch_port", p.Port, "--", "add", "port_group", groupName(uid(21)), "ports", "@p",
			"--", "set", "dns", namesRow(uid(1)), fmt.Sprintf("records:%s=%s", p.Hostname, p.Address)).CombinedOutput()
		require.NoError(b, err, string(out))
	}
}
