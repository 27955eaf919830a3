package api_test

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

// FuzzParseRule: nothing makes it panic, and what it takes is written back as a rule that means the same.
func FuzzParseRule(f *testing.F) {
	for _, s := range []string{"ingress tcp 80 0.0.0.0/0", "egress any", "ingress udp 1-65535 10.0.0.0/8", "ingress tcp 80-", "ingress icmp 1", "egress tcp -1", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := api.ParseRule(s)
		if err != nil {
			require.Equal(t, problem.Invalid, problem.KindOf(err))
			return
		}
		again, err := api.ParseRule(r.String())
		require.NoError(t, err, r.String())
		require.Equal(t, r.String(), again.String())
	})
}

// FuzzVMCreate: any JSON is either refused as invalid or within every limit.
func FuzzVMCreate(f *testing.F) {
	f.Add(`{"name":"web","vcpus":1,"memory":134217728,"image":"tiny","nics":[{"subnet":"a","address":"10.0.0.1"}]}`)
	f.Add(`{"name":"../../etc","vcpus":-1}`)
	f.Fuzz(func(t *testing.T, s string) {
		var r api.VMCreate
		if json.Unmarshal([]byte(s), &r) != nil {
			return
		}
		if err := r.Validate(); err != nil {
			require.Equal(t, problem.Invalid, problem.KindOf(err))
			return
		}
		require.True(t, api.ValidName(r.Name))
		require.LessOrEqual(t, r.VCPUs, api.MaxVCPUs)
		require.GreaterOrEqual(t, r.Memory, api.MinMemory)
	})
}
