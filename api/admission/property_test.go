package admission_test

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

// TestAnySequenceLeavesTheClaimsInOrder sends requests at random, ends them at random, and looks at the claims after each.
func TestAnySequenceLeavesTheClaimsInOrder(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		d := newDesk(t).cloud()
		a, h := d.Admission, d.User
		name := rapid.SampledFrom([]string{"x", "y"})
		groups := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"web", "x", "y"}), 0, 2, rapid.ID)
		var open []*api.Operation
		send := func(op *api.Operation, err error) {
			if err == nil {
				open = append(open, op)
				return
			}
			if k := problem.KindOf(err); k == problem.Internal || k == problem.Unavailable {
				rt.Fatalf("%v", err)
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"": func(rt *rapid.T) {
				findings, err := d.Audit(ctx)
				if err != nil {
					rt.Fatal(err)
				}
				for _, f := range findings {
					if f.Side == "store" {
						rt.Fatal(f.Problem)
					}
				}
			},
			"create vpc": func(rt *rapid.T) {
				send(a.CreateVPC(ctx, h, opts, api.VPCCreate{Name: name.Draw(rt, "name"), CIDR: "10.8.0.0/16"}))
			},
			"delete vpc": func(rt *rapid.T) { send(a.DeleteVPC(ctx, h, opts, name.Draw(rt, "name"))) },
			"create subnet": func(rt *rapid.T) {
				n := rapid.IntRange(1, 3).Draw(rt, "third")
				vpc := rapid.SampledFrom([]string{"net", "x"}).Draw(rt, "vpc")
				send(a.CreateSubnet(ctx, h, opts, api.SubnetCreate{Name: name.Draw(rt, "name"), VPC: vpc, CIDR: fmt.Sprintf("10.0.%d.0/29", n)}))
			},
			"delete subnet": func(rt *rapid.T) { send(a.DeleteSubnet(ctx, h, opts, name.Draw(rt, "name"))) },
			"create sg": func(rt *rapid.T) {
				send(a.CreateSecurityGroup(ctx, h, opts, api.SecurityGroupCreate{Name: name.Draw(rt, "name")}))
			},
			"delete sg": func(rt *rapid.T) { send(a.DeleteSecurityGroup(ctx, h, opts, name.Draw(rt, "name"))) },
			"create port": func(rt *rapid.T) {
				subnet := rapid.SampledFrom([]string{"front", "x"}).Draw(rt, "subnet")
				send(a.CreatePort(ctx, h, opts, api.PortCreate{Name: name.Draw(rt, "name"), Subnet: subnet, SecurityGroups: groups.Draw(rt, "groups")}))
			},
			"update port": func(rt *rapid.T) {
				g := groups.Draw(rt, "groups")
				send(a.UpdatePort(ctx, h, opts, name.Draw(rt, "name"), api.PortUpdate{SecurityGroups: &g}))
			},
			"delete port": func(rt *rapid.T) { send(a.DeletePort(ctx, h, opts, name.Draw(rt, "name"))) },
			"create vm": func(rt *rapid.T) {
				r := vmRequest(name.Draw(rt, "name"))
				r.SecurityGroups = groups.Draw(rt, "groups")
				r.NICs = append(r.NICs, api.NICRequest{Subnet: rapid.SampledFrom([]string{"front", "x"}).Draw(rt, "subnet")})
				send(a.CreateVM(ctx, h, opts, r))
			},
			"stop vm":   func(rt *rapid.T) { send(a.StopVM(ctx, h, opts, name.Draw(rt, "name"), api.VMStop{})) },
			"delete vm": func(rt *rapid.T) { send(a.DeleteVM(ctx, h, opts, name.Draw(rt, "name"))) },
			"create image": func(rt *rapid.T) {
				send(a.CreateImage(ctx, h, opts, api.ImageCreate{Name: name.Draw(rt, "name"), Format: api.FormatRaw, Path: "/images/x"}))
			},
			"delete image": func(rt *rapid.T) { send(a.DeleteImage(ctx, h, opts, name.Draw(rt, "name"))) },
			"create pool": func(rt *rapid.T) {
				send(a.CreatePool(ctx, h, opts, api.PoolCreate{Name: name.Draw(rt, "name"), Type: api.PoolDir, Path: "/x"}))
			},
			"update pool": func(rt *rapid.T) {
				some := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a1", "a2", "a3"}), 0, 2, rapid.ID[string])
				send(a.UpdatePool(ctx, h, opts, name.Draw(rt, "name"), api.PoolUpdate{AddAgents: some.Draw(rt, "added"), RemoveAgents: some.Draw(rt, "removed")}))
			},
			"delete pool": func(rt *rapid.T) { send(a.DeletePool(ctx, h, opts, name.Draw(rt, "name"))) },
			"settle": func(rt *rapid.T) {
				if len(open) == 0 {
					rt.Skip("nothing is open")
				}
				i := rapid.IntRange(0, len(open)-1).Draw(rt, "operation")
				end := rapid.SampledFrom([]api.OperationState{api.OpSucceeded, api.OpSucceeded, api.OpFailed, api.OpCancelled}).Draw(rt, "end")
				d.settle(open[i], end)
				open = append(open[:i], open[i+1:]...)
			},
		})
	})
}
