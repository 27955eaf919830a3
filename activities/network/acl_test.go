package network

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/workflows/steps"
)

func TestRuleMatch(t *testing.T) {
	for rule, want := range map[string][2]string{
		"ingress any":                        {"to-lport", "outport == @g && ip4"},
		"egress any":                         {"from-lport", "inport == @g && ip4"},
		"ingress any 0.0.0.0/0":              {"to-lport", "outport == @g && ip4"},
		"ingress any 10.0.0.0/8":             {"to-lport", "outport == @g && ip4 && ip4.src == 10.0.0.0/8"},
		"egress any 10.0.0.0/8":              {"from-lport", "inport == @g && ip4 && ip4.dst == 10.0.0.0/8"},
		"ingress icmp":                       {"to-lport", "outport == @g && ip4 && icmp4"},
		"egress icmp 192.0.2.1/32":           {"from-lport", "inport == @g && ip4 && ip4.dst == 192.0.2.1/32 && icmp4"},
		"ingress tcp":                        {"to-lport", "outport == @g && ip4 && tcp"},
		"ingress tcp 80":                     {"to-lport", "outport == @g && ip4 && tcp && tcp.dst == 80"},
		"ingress tcp 80-81":                  {"to-lport", "outport == @g && ip4 && tcp && tcp.dst >= 80 && tcp.dst <= 81"},
		"ingress udp 1-65535 10.1.0.0/24":    {"to-lport", "outport == @g && ip4 && ip4.src == 10.1.0.0/24 && udp && udp.dst >= 1 && udp.dst <= 65535"},
		"egress udp 53 9.9.9.9/32":           {"from-lport", "inport == @g && ip4 && ip4.dst == 9.9.9.9/32 && udp && udp.dst == 53"},
		"egress tcp 443 0.0.0.0/0":           {"from-lport", "inport == @g && ip4 && tcp && tcp.dst == 443"},
		"ingress tcp 22 203.0.113.0/24":      {"to-lport", "outport == @g && ip4 && ip4.src == 203.0.113.0/24 && tcp && tcp.dst == 22"},
		"egress tcp 1024-2048 172.16.0.0/12": {"from-lport", "inport == @g && ip4 && ip4.dst == 172.16.0.0/12 && tcp && tcp.dst >= 1024 && tcp.dst <= 2048"},
	} {
		r, err := api.ParseRule(rule)
		require.NoError(t, err, rule)
		direction, match := ruleMatch("g", r)
		require.Equal(t, want, [2]string{direction, match}, rule)
	}
	_, match := ruleMatch("g", api.Rule{Direction: api.Ingress, Protocol: api.TCP, PortMin: 22}) // as a request may say it
	require.Equal(t, "outport == @g && ip4 && tcp && tcp.dst == 22", match)
}

type flat struct {
	direction string
	priority  int
	action    string
	match     string
}

func flatten(acls []*acl) (out []flat) {
	for _, a := range acls {
		out = append(out, flat{a.Direction, a.Priority, a.Action, a.Match})
	}
	return out
}

func TestGroupACLs(t *testing.T) {
	w := steps.SecurityGroupWiring{SecurityGroup: uid(21), Project: "p", Rules: []api.Rule{{Direction: api.Ingress, Protocol: api.TCP, PortMin: 80}}}
	got := groupACLs(w)
	g := "sg_00000015_0000_4000_8000_000000000015"
	require.Equal(t, []flat{
		{"from-lport", 1000, "drop", "inport == @" + g + " && ip"},
		{"to-lport", 1000, "drop", "outport == @" + g + " && ip"},
		{"to-lport", 1001, "allow-related", "outport == @" + g + " && ip4 && tcp && tcp.dst == 80"},
	}, flatten(got))
	require.Equal(t, "ingress tcp 80", got[2].ExternalIDs[keyRule])
	again := groupACLs(w)
	seen := map[string]bool{}
	for i, a := range got {
		require.Equal(t, a.UUID, again[i].UUID)
		require.False(t, seen[a.UUID])
		seen[a.UUID] = true
	}
}

func TestSubnetACLs(t *testing.T) {
	w := aWorld().subnets
	require.Equal(t, []flat{
		{"from-lport", 2000, "allow-related", "ip4 && udp.src == 68 && udp.dst == 67"},
		{"from-lport", 2000, "allow-related", "ip4.dst == {10.1.0.1} && (udp.dst == 53 || tcp.dst == 53)"},
	}, flatten(subnetACLs(w[0])))
	require.Equal(t, "ip4.dst == {9.9.9.9, 1.1.1.1} && (udp.dst == 53 || tcp.dst == 53)", subnetACLs(w[1])[1].Match)
}

func TestNames(t *testing.T) {
	require.Equal(t, gatewayMAC(uid(11)), gatewayMAC(uid(11)))
	require.NotEqual(t, gatewayMAC(uid(11)), gatewayMAC(uid(12)))
	require.Regexp(t, `^0a(:[0-9a-f]{2}){5}$`, gatewayMAC(uid(11)))
	require.Regexp(t, `^[a-zA-Z_.][a-zA-Z0-9_.]*$`, groupName(uid(21)))
	// Rows in databases carry these: a change of how they are made would strand every row there is.
	require.Equal(t, "0a:6b:5d:ad:b7:3d", gatewayMAC("0000000b-0000-4000-8000-00000000000b"))
	require.Equal(t, "cd6bc144-bac6-5d80-94b9-8a0c91deeacb", dhcpRow("0000000b-0000-4000-8000-00000000000b"))
}
