package api_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

func TestNames(t *testing.T) {
	for _, good := range []string{"a", "web-1", "0", strings.Repeat("a", 63)} {
		require.True(t, api.ValidName(good), good)
	}
	for _, bad := range []string{"", "-a", "a-", "A", "a_b", "a.b", "../x", "a/b", "ä", strings.Repeat("a", 64), api.NewID(), "a\n"} {
		require.False(t, api.ValidName(bad), bad)
	}
}

func TestEveryKindThatCanBeHeldHasAnEmptyOne(t *testing.T) {
	for _, k := range []api.Kind{api.KindVM, api.KindImage, api.KindPool, api.KindVolume, api.KindVPC, api.KindSubnet, api.KindPort, api.KindSecurityGroup} {
		r := api.New(k)
		require.Equal(t, k, r.ResourceKind())
		r.SetPhase(api.PhaseError, "because")
		require.Equal(t, api.PhaseError, r.GetPhase())
	}
	require.Nil(t, api.New(api.KindUser))
}

func TestValidationNamesTheFields(t *testing.T) {
	vm := api.VMCreate{Name: "Web", VCPUs: 0, Memory: 5, Image: "", NICs: []api.NICRequest{{Subnet: "a", Address: "10.0.0"}}, SSHKeys: []string{"hello"}}
	vpc := api.VPCCreate{Name: "v", CIDR: "10.1.0.5/16"}
	subnet := api.SubnetCreate{Name: "s", VPC: "v", CIDR: "300.0.0.0/8", DNS: []string{"::1"}}
	pool := api.PoolCreate{Name: "p", Type: "zfs", Path: "/a/../b"}
	image := api.ImageCreate{Name: "i", Format: "iso", Path: "x", Upload: "y"}
	sg := api.SecurityGroupCreate{Name: "g", Rules: []api.Rule{{Direction: "in", Protocol: "tcp", PortMin: 90, PortMax: 80}}}
	for _, c := range []struct {
		req  interface{ Validate() error }
		want []string
	}{
		{&vm, []string{"name", "vcpus", "memory", "image", "nics[0].address", "sshKeys[0]"}},
		{&vpc, []string{"cidr"}},
		{&subnet, []string{"cidr", "dns[0]"}},
		{&pool, []string{"type", "path"}},
		{&image, []string{"format", "upload", "path"}},
		{&sg, []string{"rules[0].direction", "rules[0].portMax"}},
	} {
		var got []string
		for _, f := range problem.From(c.req.Validate()).Fields {
			got = append(got, f.Path)
		}
		for _, path := range c.want {
			require.Contains(t, got, path, "%T", c.req)
		}
	}
}

func TestRules(t *testing.T) {
	r, err := api.ParseRule("ingress tcp 80-90 10.0.0.0/8")
	require.NoError(t, err)
	require.Equal(t, api.Rule{Direction: "ingress", Protocol: "tcp", PortMin: 80, PortMax: 90, CIDR: "10.0.0.0/8"}, r)
	for _, bad := range []string{"", "ingress", "ingress tcp x", "ingress tcp 80 10.0.0.1/8", "sideways tcp", "ingress icmp 8", "ingress tcp 80 10.0.0.0/8 more", "ingress tcp 90-80", "egress tcp 99999"} {
		_, err := api.ParseRule(bad)
		require.Equal(t, problem.Invalid, problem.KindOf(err), bad)
	}
}
