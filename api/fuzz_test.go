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

// fuzzRequest: any JSON is either refused as invalid, with what to do, or is within limits.
func fuzzRequest[T any, P interface {
	*T
	Validate() error
}](f *testing.F, within func(*testing.T, *T), seeds ...string) {
	for _, s := range seeds {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var r T
		if json.Unmarshal([]byte(s), &r) != nil {
			return
		}
		if err := P(&r).Validate(); err != nil {
			require.Equal(t, problem.Invalid, problem.KindOf(err))
			require.NotEmpty(t, problem.From(err).Fix)
			return
		}
		within(t, &r)
	})
}

func FuzzAgentUpdate(f *testing.F) {
	fuzzRequest(f, func(t *testing.T, r *api.AgentUpdate) {
		if r.CPURatio != nil {
			require.Positive(t, *r.CPURatio)
		}
		if r.ReservedMemory != nil {
			require.GreaterOrEqual(t, *r.ReservedMemory, int64(0))
		}
		if r.Fence != nil && r.Fence.Driver != "" {
			require.NotContains(t, r.Fence.Address, "@")
			require.NotContains(t, r.Fence.Address, "/")
		}
	}, `{"cpuRatio":4,"fence":{"driver":"ipmi","address":"10.0.0.1:623","user":"a","password":"b"}}`, `{"fence":{"driver":"ipmi","address":"a@b/c"}}`, `{"memoryRatio":-1}`)
}

func FuzzVMMigrate(f *testing.F) {
	fuzzRequest(f, func(t *testing.T, r *api.VMMigrate) {
		require.GreaterOrEqual(t, r.Bandwidth, int64(0))
		require.LessOrEqual(t, r.Timeout, 86_400)
		require.False(t, r.Cold && r.PostCopy)
	}, `{"to":"node-2","bandwidth":104857600,"maxDowntime":300}`, `{"cold":true,"postCopy":true}`, `{"timeout":-1}`)
}

func FuzzVMUpdate(f *testing.F) {
	fuzzRequest(f, func(t *testing.T, r *api.VMUpdate) {
		if r.Group != nil && *r.Group != "" {
			require.True(t, api.ValidName(*r.Group) || api.IsUUID(*r.Group))
		}
	}, `{"ha":true,"group":"apart","nodeId":"","labels":{"a":"b"}}`, `{"group":"../x"}`, `{"labels":{"":""}}`)
}
