package network

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

func uid(n int) string { return fmt.Sprintf("%08x-0000-4000-8000-%012x", n, n) }

// world is a small cloud: two subnets of one VPC, two groups, three ports.
type world struct {
	vpc     steps.VPCWiring
	subnets []steps.SubnetWiring
	groups  []steps.SecurityGroupWiring
	ports   []steps.PortWiring
}

func aWorld() world {
	return world{
		vpc: steps.VPCWiring{VPC: uid(1), Name: "blue", Project: "default", CIDR: "10.1.0.0/16"},
		subnets: []steps.SubnetWiring{
			{Subnet: uid(11), Name: "a", Project: "default", VPC: uid(1), CIDR: "10.1.0.0/24", Gateway: "10.1.0.1"},
			{Subnet: uid(12), Name: "b", Project: "default", VPC: uid(1), CIDR: "10.1.1.0/24", Gateway: "10.1.1.1", DNS: []string{"9.9.9.9", "1.1.1.1"}},
		},
		groups: []steps.SecurityGroupWiring{
			{SecurityGroup: uid(21), Name: "web", Project: "default", Rules: []api.Rule{{Direction: api.Ingress, Protocol: api.TCP, PortMin: 80, PortMax: 80}}},
			{SecurityGroup: uid(22), Name: "ping", Project: "default", Rules: []api.Rule{{Direction: api.Ingress, Protocol: api.ICMP, CIDR: "10.0.0.0/8"}, {Direction: api.Egress, Protocol: api.AnyIP}}},
		},
		ports: []steps.PortWiring{
			{Port: uid(31), Project: "default", Subnet: uid(11), MAC: "52:54:00:00:00:01", Address: "10.1.0.11", Hostname: "vm1", VM: uid(91), SecurityGroups: []string{uid(21), uid(22)}},
			{Port: uid(32), Project: "default", Subnet: uid(11), MAC: "52:54:00:00:00:02", Address: "10.1.0.12", Hostname: "vm2", VM: uid(92)},
			{Port: uid(33), Project: "default", Subnet: uid(12), MAC: "52:54:00:00:00:03", Address: "10.1.1.13", Hostname: "vm1", VM: uid(91), SecurityGroups: []string{uid(21)}},
		},
	}
}

func (w world) wire(ctx context.Context, t testing.TB, d Driver) {
	t.Helper()
	require.NoError(t, d.WireVPC(ctx, w.vpc))
	for _, s := range w.subnets {
		require.NoError(t, d.WireSubnet(ctx, s))
	}
	for _, g := range w.groups {
		require.NoError(t, d.WireSecurityGroup(ctx, g))
	}
	require.NoError(t, d.WirePorts(ctx, w.ports))
}

func (w world) want() wanted {
	return wanted{VPCs: []steps.VPCWiring{w.vpc}, Subnets: w.subnets, Ports: w.ports, SecurityGroups: w.groups}
}

func (w world) names() map[string]string {
	return map[string]string{
		"vm1": "10.1.0.11 10.1.1.13", "vm1.blue.internal": "10.1.0.11 10.1.1.13",
		"vm2": "10.1.0.12", "vm2.blue.internal": "10.1.0.12",
	}
}

func list(ctx context.Context, t testing.TB, d Driver) *Inventory {
	t.Helper()
	inv, err := d.List(ctx)
	require.NoError(t, err)
	return &inv
}

// settled checks that the driver has exactly the world, with nothing wrong in it.
func settled(ctx context.Context, t testing.TB, d Driver, w world) {
	t.Helper()
	inv := list(ctx, t, d)
	require.Empty(t, compare(w.want(), *inv))
	require.Equal(t, w.names(), inv.Find(KindVPC, w.vpc.VPC).Names)
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// conformance is what every Driver must pass.
func conformance(t *testing.T, fresh func(t *testing.T) Driver) {
	cases := []struct {
		name string
		run  func(*testing.T, context.Context, Driver)
	}{
		{"wire and unwire", conformWire},
		{"everything twice", conformTwice},
		{"everything ten times at once", conformConcurrent},
		{"different ports at once", conformManyPorts},
		{"updates", conformUpdates},
		{"unwire takes the children", conformChildren},
		{"bad input", conformBadInput},
		{"unknown references", conformUnknown},
		{"all ports or none", conformAllOrNone},
		{"strays", conformStrays},
		{"binding", conformBinding},
		{"binding and wiring at once", conformBindConcurrently},
		{"mending", conformMend},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { c.run(t, testContext(t), fresh(t)) })
	}
}

func TestFakeConforms(t *testing.T) {
	conformance(t, func(*testing.T) Driver { return NewFake() })
}

func TestFakeAway(t *testing.T) {
	f := NewFake()
	f.SetAway(true)
	require.True(t, problem.Is(f.WireVPC(context.Background(), aWorld().vpc), problem.Unavailable))
	f.SetAway(false)
	require.NoError(t, f.WireVPC(context.Background(), aWorld().vpc))
}

func conformWire(t *testing.T, ctx context.Context, d Driver) {
	w := aWorld()
	require.Empty(t, list(ctx, t, d).Items)
	w.wire(ctx, t, d)
	settled(ctx, t, d, w)

	require.NoError(t, d.UnwirePorts(ctx, []string{uid(31)}))
	inv := list(ctx, t, d)
	require.Nil(t, inv.Find(KindPort, uid(31)))
	require.Equal(t, "10.1.1.13", inv.Find(KindVPC, uid(1)).Names["vm1"], "the other port of that name keeps it")
	require.NoError(t, d.UnwirePorts(ctx, []string{uid(32), uid(33)}))
	require.Empty(t, list(ctx, t, d).Find(KindVPC, uid(1)).Names)
	for _, s := range w.subnets {
		require.NoError(t, d.UnwireSubnet(ctx, s.Subnet))
	}
	for _, g := range w.groups {
		require.NoError(t, d.UnwireSecurityGroup(ctx, g.SecurityGroup))
	}
	require.NoError(t, d.UnwireVPC(ctx, w.vpc.VPC))
	require.Empty(t, list(ctx, t, d).Items)

	w.wire(ctx, t, d) // what was removed can be made again under the same ID: an undo may be followed by another try
	settled(ctx, t, d, w)
}

func conformTwice(t *testing.T, ctx context.Context, d Driver) {
	w := aWorld()
	w.wire(ctx, t, d)
	w.wire(ctx, t, d)
	settled(ctx, t, d, w)
	for range 2 {
		require.NoError(t, d.UnwirePorts(ctx, []string{uid(31), uid(32), uid(33)}))
		require.NoError(t, d.UnwireSubnet(ctx, uid(11)))
		require.NoError(t, d.UnwireSubnet(ctx, uid(12)))
		require.NoError(t, d.UnwireSecurityGroup(ctx, uid(21)))
		require.NoError(t, d.UnwireSecurityGroup(ctx, uid(22)))
		require.NoError(t, d.UnwireVPC(ctx, uid(1)))
	}
	require.Empty(t, list(ctx, t, d).Items)
	require.NoError(t, d.WirePorts(ctx, nil))
	require.NoError(t, d.UnwirePorts(ctx, nil))
}

// atOnce runs do n times at the same time and wants every run to succeed.
func atOnce(t *testing.T, n int, do func(i int) error) {
	t.Helper()
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { errs[i] = do(i) })
	}
	wg.Wait()
	for _, err := range errs {
		require.NoError(t, err)
	}
}

func conformConcurrent(t *testing.T, ctx context.Context, d Driver) {
	w := aWorld()
	atOnce(t, 10, func(int) error { return d.WireVPC(ctx, w.vpc) })
	atOnce(t, 10, func(i int) error { return d.WireSubnet(ctx, w.subnets[i%2]) })
	atOnce(t, 10, func(i int) error { return d.WireSecurityGroup(ctx, w.groups[i%2]) })
	atOnce(t, 10, func(int) error { return d.WirePorts(ctx, w.ports) })
	settled(ctx, t, d, w)
	atOnce(t, 10, func(i int) error { // everything at the same time
		switch i % 4 {
		case 0:
			return d.WireVPC(ctx, w.vpc)
		case 1:
			return d.WireSubnet(ctx, w.subnets[i%2])
		case 2:
			return d.WireSecurityGroup(ctx, w.groups[i%2])
		default:
			return d.WirePorts(ctx, w.ports)
		}
	})
	settled(ctx, t, d, w)
	atOnce(t, 10, func(int) error { return d.UnwirePorts(ctx, []string{uid(31), uid(32), uid(33)}) })
	atOnce(t, 10, func(i int) error { return d.UnwireSubnet(ctx, uid(11+i%2)) })
	atOnce(t, 10, func(i int) error { return d.UnwireSecurityGroup(ctx, uid(21+i%2)) })
	atOnce(t, 10, func(int) error { return d.UnwireVPC(ctx, uid(1)) })
	require.Empty(t, list(ctx, t, d).Items)
}

// conformManyPorts wires ports of one hostname, one group and one subnet side by side: nobody's change may get lost.
func conformManyPorts(t *testing.T, ctx context.Context, d Driver) {
	w := aWorld()
	require.NoError(t, d.WireVPC(ctx, w.vpc))
	require.NoError(t, d.WireSubnet(ctx, w.subnets[0]))
	require.NoError(t, d.WireSecurityGroup(ctx, w.groups[0]))
	const n = 20
	port := func(i int) steps.PortWiring {
		return steps.PortWiring{
			Port: uid(1000 + i), Project: "default", Subnet: uid(11), MAC: fmt.Sprintf("52:54:00:00:01:%02x", i), Address: fmt.Sprintf("10.1.0.%d", 100+i),
			Hostname: []string{"pool", fmt.Sprintf("own%d", i)}[i%2], SecurityGroups: []string{uid(21)},
		}
	}
	atOnce(t, n, func(i int) error { return d.WirePorts(ctx, []steps.PortWiring{port(i)}) })
	want := wanted{VPCs: []steps.VPCWiring{w.vpc}, Subnets: w.subnets[:1], SecurityGroups: w.groups[:1]}
	for i := range n {
		want.Ports = append(want.Ports, port(i))
	}
	inv := list(ctx, t, d)
	require.Empty(t, compare(want, *inv))
	require.Equal(t, "10.1.0.100 10.1.0.102 10.1.0.104 10.1.0.106 10.1.0.108 10.1.0.110 10.1.0.112 10.1.0.114 10.1.0.116 10.1.0.118",
		inv.Find(KindVPC, uid(1)).Names["pool"])
	require.Len(t, inv.Find(KindVPC, uid(1)).Names, 2+n) // two for the pool, two for each of the n/2 others
	atOnce(t, n, func(i int) error { return d.UnwirePorts(ctx, []string{port(i).Port}) })
	require.Empty(t, list(ctx, t, d).Find(KindVPC, uid(1)).Names)
}

func conformUpdates(t *testing.T, ctx context.Context, d Driver) {
	w := aWorld()
	w.wire(ctx, t, d)

	w.groups[0].Rules = []api.Rule{{Direction: api.Ingress, Protocol: api.UDP, PortMin: 53, PortMax: 60}, {Direction: api.Ingress, Protocol: api.TCP, PortMin: 80, PortMax: 80}}
	require.NoError(t, d.WireSecurityGroup(ctx, w.groups[0]))
	settled(ctx, t, d, w)
	w.groups[0].Rules = nil
	require.NoError(t, d.WireSecurityGroup(ctx, w.groups[0]))
	settled(ctx, t, d, w)

	w.subnets[0].DNS, w.subnets[1].DNS = []string{"8.8.8.8"}, nil
	require.NoError(t, d.WireSubnet(ctx, w.subnets[0]))
	require.NoError(t, d.WireSubnet(ctx, w.subnets[1]))
	settled(ctx, t, d, w)

	w.ports[0].SecurityGroups = []string{uid(22)}
	w.ports[1].SecurityGroups = []string{uid(22), uid(21)}
	w.ports[2].SecurityGroups = nil
	require.NoError(t, d.WirePorts(ctx, w.ports))
	settled(ctx, t, d, w)

	w.ports[1].Hostname = "other" // a new name and address, in another subnet
	w.ports[1].Subnet, w.ports[1].Address = uid(12), "10.1.1.50"
	require.NoError(t, d.WirePorts(ctx, w.ports[1:2]))
	inv := list(ctx, t, d)
	require.Empty(t, compare(w.want(), *inv))
	require.Equal(t, map[string]string{
		"vm1": "10.1.0.11 10.1.1.13", "vm1.blue.internal": "10.1.0.11 10.1.1.13", "other": "10.1.1.50", "other.blue.internal": "10.1.1.50",
	}, inv.Find(KindVPC, uid(1)).Names)

	w.vpc.Name = "green"
	require.NoError(t, d.WireVPC(ctx, w.vpc))
	inv = list(ctx, t, d)
	require.Empty(t, compare(w.want(), *inv))
	require.Contains(t, inv.Find(KindVPC, uid(1)).Names, "vm1.green.internal")
	require.NotContains(t, inv.Find(KindVPC, uid(1)).Names, "vm1.blue.internal")
}

func conformChildren(t *testing.T, ctx context.Context, d Driver) {
	w := aWorld()
	w.wire(ctx, t, d)
	require.NoError(t, d.UnwireSubnet(ctx, uid(11)))
	inv := list(ctx, t, d)
	require.Nil(t, inv.Find(KindPort, uid(31)))
	require.Nil(t, inv.Find(KindPort, uid(32)))
	require.NotNil(t, inv.Find(KindPort, uid(33)))
	require.Equal(t, map[string]string{"vm1": "10.1.1.13", "vm1.blue.internal": "10.1.1.13"}, inv.Find(KindVPC, uid(1)).Names)

	require.NoError(t, d.UnwireVPC(ctx, uid(1)))
	inv = list(ctx, t, d)
	for _, it := range inv.Items {
		require.Equal(t, KindSecurityGroup, it.Kind, "groups belong to no VPC and stay; %s %s does not", it.Kind, it.ID)
	}
	require.Len(t, inv.Items, 2)
}

func conformBadInput(t *testing.T, ctx context.Context, d Driver) {
	invalid := func(err error, mention string) {
		t.Helper()
		assert.True(t, problem.Is(err, problem.Invalid), "%v", err)
		assert.ErrorContains(t, err, mention)
	}
	w := aWorld()
	w.wire(ctx, t, d)
	vpc, subnet, group, port := w.vpc, w.subnets[0], w.groups[0], w.ports[0]
	vpc.VPC = "vpc-1"
	invalid(d.WireVPC(ctx, vpc), "vpc-1")
	vpc = w.vpc
	vpc.Name = `x" || ip4`
	invalid(d.WireVPC(ctx, vpc), "name")
	subnet.Gateway = "10.9.0.1"
	invalid(d.WireSubnet(ctx, subnet), "10.9.0.1")
	subnet = w.subnets[0]
	subnet.CIDR = "10.1.0.5/24"
	invalid(d.WireSubnet(ctx, subnet), "cidr")
	subnet = w.subnets[0]
	subnet.DNS = []string{"ns.example"}
	invalid(d.WireSubnet(ctx, subnet), "ns.example")
	group.Rules = []api.Rule{{Direction: api.Ingress, Protocol: api.TCP, CIDR: "0.0.0.0/0 || ip"}}
	invalid(d.WireSecurityGroup(ctx, group), "cidr")
	port.MAC = "01:00:5e:00:00:01"
	invalid(d.WirePorts(ctx, []steps.PortWiring{port}), "mac")
	port = w.ports[0]
	port.Address = "10.1.7.7"
	invalid(d.WirePorts(ctx, []steps.PortWiring{port}), "10.1.7.7")
	port.Address = "10.1.0.1"
	invalid(d.WirePorts(ctx, []steps.PortWiring{port}), "gateway")
	port = w.ports[0]
	port.Hostname = "a b"
	invalid(d.WirePorts(ctx, []steps.PortWiring{port}), "hostname")
	invalid(d.WirePorts(ctx, []steps.PortWiring{w.ports[0], w.ports[0]}), "twice")
	invalid(d.UnwireVPC(ctx, ""), "id")
	invalid(d.UnwireSubnet(ctx, "x"), "id")
	invalid(d.UnwireSecurityGroup(ctx, "x"), "id")
	invalid(d.UnwirePorts(ctx, []string{"x"}), "id")
	invalid(d.RemoveStray(ctx, "cow", uid(1)), "cow")
	settled(ctx, t, d, w)
}

func conformUnknown(t *testing.T, ctx context.Context, d Driver) {
	w := aWorld()
	missing := func(err error, mention string) {
		t.Helper()
		require.True(t, problem.Is(err, problem.NotFound), "%v", err)
		require.ErrorContains(t, err, mention)
	}
	missing(d.WireSubnet(ctx, w.subnets[0]), uid(1))
	require.NoError(t, d.WireVPC(ctx, w.vpc))
	missing(d.WirePorts(ctx, w.ports), uid(11))
	require.NoError(t, d.WireSubnet(ctx, w.subnets[0]))
	missing(d.WirePorts(ctx, w.ports), uid(21))
	require.NoError(t, d.UnwireVPC(ctx, uid(1)))
	require.Empty(t, list(ctx, t, d).Items)
}

func conformAllOrNone(t *testing.T, ctx context.Context, d Driver) {
	w := aWorld()
	require.NoError(t, d.WireVPC(ctx, w.vpc))
	require.NoError(t, d.WireSubnet(ctx, w.subnets[0]))
	require.NoError(t, d.WireSecurityGroup(ctx, w.groups[0]))
	require.NoError(t, d.WireSecurityGroup(ctx, w.groups[1]))
	require.Error(t, d.WirePorts(ctx, w.ports)) // the third is on a subnet that is not there
	inv := list(ctx, t, d)
	require.Empty(t, compare(wanted{VPCs: []steps.VPCWiring{w.vpc}, Subnets: w.subnets[:1], SecurityGroups: w.groups}, *inv))
	require.Empty(t, inv.Find(KindVPC, uid(1)).Names)
}

func conformStrays(t *testing.T, ctx context.Context, d Driver) {
	w := aWorld()
	w.wire(ctx, t, d)
	// The store knows only the second subnet with its port, and no group.
	known := w
	known.subnets, known.ports, known.groups = w.subnets[1:], slices.Clone(w.ports[2:]), nil
	known.ports[0].SecurityGroups = nil
	require.NoError(t, d.WirePorts(ctx, known.ports))
	findings := compare(known.want(), *list(ctx, t, d))
	require.Len(t, findings, 5) // one subnet, two ports, two groups
	for _, f := range findings {
		require.True(t, f.Extra, "%+v", f)
	}
	inUse := func(kind, id string) {
		t.Helper()
		err := d.RemoveStray(ctx, kind, id)
		require.True(t, problem.Is(err, problem.InUse), "%v", err)
	}
	inUse(KindVPC, uid(1))
	inUse(KindSubnet, uid(11))

	missing := api.Finding{Side: "ovn", Kind: KindPort, ID: uid(78), Problem: "p0"}         // and nobody knows as what it was wired
	elsewhere := api.Finding{Side: "libvirt", Kind: KindPort, ID: uid(33), Extra: true}     // not ours to repair
	held := api.Finding{Side: "ovn", Kind: KindVPC, ID: uid(1), Extra: true, Problem: "p1"} // cannot be removed
	findings, err := repair(ctx, d, append(findings, missing, elsewhere, held))
	require.NoError(t, err)
	for i, f := range findings {
		require.Equal(t, i < 5, f.Repaired, "%+v", f)
	}
	require.Contains(t, findings[5].Problem, "p0; not mended: ")
	require.Contains(t, findings[7].Problem, "p1; not removed: ")
	inv := list(ctx, t, d)
	require.Empty(t, compare(known.want(), *inv))
	require.Equal(t, map[string]string{"vm1": "10.1.1.13", "vm1.blue.internal": "10.1.1.13"}, inv.Find(KindVPC, uid(1)).Names)
	for _, kind := range []string{KindPort, KindSubnet, KindVPC, KindSecurityGroup} {
		require.NoError(t, d.RemoveStray(ctx, kind, uid(77)), "nothing there")
	}
	settledKinds := map[string]int{}
	for _, it := range inv.Items {
		settledKinds[it.Kind]++
	}
	require.Equal(t, map[string]int{KindVPC: 1, KindSubnet: 1, KindPort: 1}, settledKinds)
}
