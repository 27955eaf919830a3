package admission_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/admission"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// life is what can happen to one kind of resource.
type life struct {
	create, update, remove func(d *desk) (*api.Operation, error)
	phase                  func(d *desk) (api.Phase, error)
}

func phaseOf[T any, P interface {
	*T
	api.Phased
}](project, name string) func(*desk) (api.Phase, error) {
	return func(d *desk) (api.Phase, error) {
		r, err := store.Find[T, P](ctx, d.KV, d.User, project, name)
		if err != nil {
			return "", err
		}
		return P(r).GetPhase(), nil
	}
}

func lives() map[string]life {
	labels := map[string]string{"a": "b"}
	p := opts.Project
	return map[string]life{
		"vpc": {
			create: func(d *desk) (*api.Operation, error) {
				return d.Admission.CreateVPC(ctx, d.User, opts, api.VPCCreate{Name: "x", CIDR: "10.9.0.0/16"})
			},
			update: func(d *desk) (*api.Operation, error) {
				return d.Admission.UpdateVPC(ctx, d.User, opts, "x", api.VPCUpdate{Labels: &labels})
			},
			remove: func(d *desk) (*api.Operation, error) { return d.Admission.DeleteVPC(ctx, d.User, opts, "x") },
			phase:  phaseOf[api.VPC](p, "x"),
		},
		"subnet": {
			create: func(d *desk) (*api.Operation, error) {
				return d.Admission.CreateSubnet(ctx, d.User, opts, api.SubnetCreate{Name: "x", VPC: "net", CIDR: "10.0.9.0/24"})
			},
			update: func(d *desk) (*api.Operation, error) {
				return d.Admission.UpdateSubnet(ctx, d.User, opts, "x", api.SubnetUpdate{Labels: &labels})
			},
			remove: func(d *desk) (*api.Operation, error) { return d.Admission.DeleteSubnet(ctx, d.User, opts, "x") },
			phase:  phaseOf[api.Subnet](p, "x"),
		},
		"port": {
			create: func(d *desk) (*api.Operation, error) {
				return d.Admission.CreatePort(ctx, d.User, opts, api.PortCreate{Name: "x", Subnet: "front", SecurityGroups: []string{"web"}})
			},
			update: func(d *desk) (*api.Operation, error) {
				return d.Admission.UpdatePort(ctx, d.User, opts, "x", api.PortUpdate{SecurityGroups: &[]string{}})
			},
			remove: func(d *desk) (*api.Operation, error) { return d.Admission.DeletePort(ctx, d.User, opts, "x") },
			phase:  phaseOf[api.Port](p, "x"),
		},
		"security group": {
			create: func(d *desk) (*api.Operation, error) {
				return d.Admission.CreateSecurityGroup(ctx, d.User, opts, api.SecurityGroupCreate{Name: "x"})
			},
			update: func(d *desk) (*api.Operation, error) {
				return d.Admission.UpdateSecurityGroup(ctx, d.User, opts, "x", api.SecurityGroupUpdate{Rules: &[]api.Rule{{Direction: api.Ingress, Protocol: api.ICMP}}})
			},
			remove: func(d *desk) (*api.Operation, error) { return d.Admission.DeleteSecurityGroup(ctx, d.User, opts, "x") },
			phase:  phaseOf[api.SecurityGroup](p, "x"),
		},
		"image": {
			create: func(d *desk) (*api.Operation, error) {
				return d.Admission.CreateImage(ctx, d.User, opts, api.ImageCreate{Name: "x", Format: api.FormatRaw, Upload: api.NewID()})
			},
			remove: func(d *desk) (*api.Operation, error) { return d.Admission.DeleteImage(ctx, d.User, opts, "x") },
			phase:  phaseOf[api.Image](p, "x"),
		},
		"pool": {
			create: func(d *desk) (*api.Operation, error) {
				return d.Admission.CreatePool(ctx, d.User, opts, api.PoolCreate{Name: "x", Type: api.PoolDir, Path: "/x", Agents: []string{"a2"}})
			},
			update: func(d *desk) (*api.Operation, error) {
				return d.Admission.UpdatePool(ctx, d.User, opts, "x", api.PoolUpdate{AddAgents: []string{"a1"}, RemoveAgents: []string{"a2"}})
			},
			remove: func(d *desk) (*api.Operation, error) { return d.Admission.DeletePool(ctx, d.User, opts, "x") },
			phase:  phaseOf[api.Pool]("", "x"),
		},
		"vm group": {
			create: func(d *desk) (*api.Operation, error) {
				return d.Admission.CreateGroup(ctx, d.User, opts, api.VMGroupCreate{Name: "x", VMGroupSpec: api.VMGroupSpec{Policy: api.Affinity}})
			},
			remove: func(d *desk) (*api.Operation, error) { return d.Admission.DeleteGroup(ctx, d.User, opts, "x") },
			phase:  phaseOf[api.VMGroup](p, "x"),
		},
		"vm of a group": {
			create: func(d *desk) (*api.Operation, error) {
				r := vmRequest("x")
				r.Group = "pack"
				return d.Admission.CreateVM(ctx, d.User, opts, r)
			},
			update: func(d *desk) (*api.Operation, error) {
				none := ""
				return d.Admission.UpdateVM(ctx, d.User, opts, "x", api.VMUpdate{Group: &none})
			},
			remove: func(d *desk) (*api.Operation, error) { return d.Admission.DeleteVM(ctx, d.User, opts, "x") },
			phase:  phaseOf[api.VM](p, "x"),
		},
		"vm": {
			create: func(d *desk) (*api.Operation, error) { return d.Admission.CreateVM(ctx, d.User, opts, vmRequest("x")) },
			update: func(d *desk) (*api.Operation, error) { return d.Admission.StopVM(ctx, d.User, opts, "x", api.VMStop{}) },
			remove: func(d *desk) (*api.Operation, error) { return d.Admission.DeleteVM(ctx, d.User, opts, "x") },
			phase:  phaseOf[api.VM](p, "x"),
		},
	}
}

// TestEveryResourceComesAndGoesWithItsClaims follows each kind through success, failure and cancellation of every request.
func TestEveryResourceComesAndGoesWithItsClaims(t *testing.T) {
	for kind, l := range lives() {
		t.Run(kind, func(t *testing.T) {
			d := newDesk(t).cloud()
			d.clean()
			empty := claims(d)
			for _, end := range []api.OperationState{api.OpFailed, api.OpCancelled} {
				op := d.ask(l.create(d))
				phase, err := l.phase(d)
				require.NoError(t, err, "it can be seen as soon as it is accepted")
				require.Equal(t, api.PhaseCreating, phase)
				d.clean()
				d.settle(op, end)
				_, err = l.phase(d)
				require.True(t, problem.Is(err, problem.NotFound), "%v", err)
				require.Equal(t, empty, claims(d))
			}
			d.done(l.create(d))
			there, err := l.phase(d)
			require.NoError(t, err)
			d.clean()
			full := claims(d)
			require.NotEqual(t, empty, full)

			op, err := l.create(d)
			_ = d.refuse(problem.Conflict, op, err)

			if l.update != nil {
				d.settle(d.ask(l.update(d)), api.OpFailed)
				require.Equal(t, full, claims(d))
				d.done(l.update(d))
				d.clean()
			}
			before, err := l.phase(d)
			require.NoError(t, err)
			held := claims(d)
			op = d.ask(l.remove(d))
			require.Equal(t, api.PhaseDeleting, must(l.phase(d)))
			d.settle(op, api.OpFailed)
			require.Equal(t, before, must(l.phase(d)))
			require.Equal(t, held, claims(d))
			d.done(l.remove(d))
			_, err = l.phase(d)
			require.True(t, problem.Is(err, problem.NotFound), "%v", err)
			require.Equal(t, empty, claims(d), "first it was %s", there)
			d.clean()
		})
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// claims returns the keys of all claims and secrets.
func claims(d *desk) []string {
	d.Helper()
	var out []string
	for _, prefix := range []string{store.ClaimsRoot, store.SecretKey("")} {
		entries, _, err := d.KV.List(ctx, prefix)
		require.NoError(d, err)
		for _, e := range entries {
			out = append(out, e.Key)
		}
	}
	return out
}

func TestBadRequestsAreRefusedWithWhatToDo(t *testing.T) {
	d := newDesk(t).cloud()
	a := d.Admission
	vm := func(change func(*api.VMCreate)) func() (*api.Operation, error) {
		return func() (*api.Operation, error) {
			r := vmRequest("vm")
			change(&r)
			return a.CreateVM(ctx, d.User, opts, r)
		}
	}
	subnet := func(cidr string) func() (*api.Operation, error) {
		return func() (*api.Operation, error) {
			return a.CreateSubnet(ctx, d.User, opts, api.SubnetCreate{Name: "s", VPC: "net", CIDR: cidr})
		}
	}
	port := func(address string) func() (*api.Operation, error) {
		return func() (*api.Operation, error) {
			return a.CreatePort(ctx, d.User, opts, api.PortCreate{Name: "p", Subnet: "front", Address: address})
		}
	}
	before := claims(d)
	for name, c := range map[string]struct {
		kind problem.Kind
		call func() (*api.Operation, error)
	}{
		"bad name":            {problem.Invalid, vm(func(r *api.VMCreate) { r.Name = "Not Good" })},
		"no vcpus":            {problem.Invalid, vm(func(r *api.VMCreate) { r.VCPUs = 0 })},
		"memory in MiB":       {problem.Invalid, vm(func(r *api.VMCreate) { r.Memory = 1024 })},
		"no such strategy":    {problem.Invalid, vm(func(r *api.VMCreate) { r.Placement = "stack" })},
		"no such image":       {problem.NotFound, vm(func(r *api.VMCreate) { r.Image = "none" })},
		"no such subnet":      {problem.NotFound, vm(func(r *api.VMCreate) { r.NICs[0].Subnet = "none" })},
		"no such group":       {problem.NotFound, vm(func(r *api.VMCreate) { r.SecurityGroups = []string{"none"} })},
		"no such pool":        {problem.NotFound, vm(func(r *api.VMCreate) { r.Pool = "none" })},
		"disk too small":      {problem.Invalid, vm(func(r *api.VMCreate) { r.RootDisk = 512 * api.MiB })},
		"one address twice":   {problem.Conflict, vm(func(r *api.VMCreate) { r.NICs = twice("10.0.1.9") })},
		"reserved address":    {problem.Invalid, vm(func(r *api.VMCreate) { r.NICs[0].Address = "10.0.1.1" })},
		"network address":     {problem.Invalid, port("10.0.1.0")},
		"broadcast address":   {problem.Invalid, port("10.0.1.255")},
		"address elsewhere":   {problem.Invalid, port("10.0.2.7")},
		"IPv6 address":        {problem.Invalid, port("fe80::1")},
		"mapped address":      {problem.Invalid, port("::ffff:10.0.1.7")},
		"overlapping subnet":  {problem.Conflict, subnet("10.0.0.0/22")},
		"same subnet":         {problem.Conflict, subnet("10.0.1.0/24")},
		"subnet inside other": {problem.Conflict, subnet("10.0.1.128/25")},
		"subnet outside":      {problem.Invalid, subnet("10.1.0.0/24")},
		"subnet too large":    {problem.Invalid, subnet("10.0.0.0/8")},
		"host bits":           {problem.Invalid, subnet("10.0.3.1/24")},
		"pool of no agent": {problem.NotFound, func() (*api.Operation, error) {
			return a.CreatePool(ctx, d.User, opts, api.PoolCreate{Name: "p", Type: api.PoolDir, Path: "/p", Agents: []string{"none"}})
		}},
		"pool directory taken": {problem.Conflict, func() (*api.Operation, error) {
			return a.CreatePool(ctx, d.User, opts, api.PoolCreate{Name: "p", Type: api.PoolDir, Path: "/vms"})
		}},
		"image from nowhere": {problem.Invalid, func() (*api.Operation, error) {
			return a.CreateImage(ctx, d.User, opts, api.ImageCreate{Name: "i", Format: api.FormatRaw})
		}},
		"no such project": {problem.NotFound, func() (*api.Operation, error) {
			return a.CreateVPC(ctx, d.User, admission.Options{Project: "none"}, api.VPCCreate{Name: "v", CIDR: "10.0.0.0/16"})
		}},
		"no such vm":       {problem.NotFound, func() (*api.Operation, error) { return a.DeleteVM(ctx, d.User, opts, "none") }},
		"timeout too long": {problem.Invalid, func() (*api.Operation, error) { return a.StopVM(ctx, d.User, opts, "none", api.VMStop{Timeout: 7200}) }},
		"nobody asks": {problem.Forbidden, func() (*api.Operation, error) {
			return a.CreateVPC(ctx, auth.Handle{}, opts, api.VPCCreate{Name: "v", CIDR: "10.0.0.0/16"})
		}},
	} {
		t.Run(name, func(t *testing.T) {
			op, err := c.call()
			require.Nil(t, op)
			require.Equal(t, c.kind, problem.KindOf(err), "%v", err)
			require.NotEmpty(t, problem.From(err).Fix, "%v", err)
		})
	}
	require.Equal(t, before, claims(d), "what is refused leaves nothing")
}

func TestAnAgentNamedTwiceIsInThePoolOnce(t *testing.T) {
	d := newDesk(t)
	id := find[api.Agent](d, "", "a1").ID
	d.done(d.Admission.CreatePool(ctx, d.User, opts, api.PoolCreate{Name: "p", Type: api.PoolDir, Path: "/p", Agents: []string{"a1", id}}))
	require.Equal(t, []string{id}, find[api.Pool](d, "", "p").Spec.Agents)
}

func twice(address string) []api.NICRequest {
	return []api.NICRequest{{Subnet: "front", Address: address}, {Subnet: "front", Address: address}}
}

func TestAnAddressIsGivenOnce(t *testing.T) {
	d := newDesk(t).cloud()
	a := d.Admission
	d.done(a.CreateSubnet(ctx, d.User, opts, api.SubnetCreate{Name: "tiny", VPC: "net", CIDR: "10.0.2.0/29"}))
	fixed := api.PortCreate{Name: "fixed", Subnet: "tiny", Address: "10.0.2.4"}
	d.done(a.CreatePort(ctx, d.User, opts, fixed))
	fixed.Name = "second"
	op, err := a.CreatePort(ctx, d.User, opts, fixed)
	_ = d.refuse(problem.Conflict, op, err)
	got := map[string]bool{"10.0.2.1": true, "10.0.2.4": true}
	for i := range 4 {
		name := fmt.Sprint("p", i)
		d.done(a.CreatePort(ctx, d.User, opts, api.PortCreate{Name: name, Subnet: "tiny"}))
		address := find[api.Port](d, opts.Project, name).Spec.Address
		require.False(t, got[address], address)
		got[address] = true
	}
	op, err = a.CreatePort(ctx, d.User, opts, api.PortCreate{Name: "more", Subnet: "tiny"})
	_ = d.refuse(problem.NoCapacity, op, err)
	d.done(a.DeletePort(ctx, d.User, opts, "p2"))
	d.done(a.CreatePort(ctx, d.User, opts, api.PortCreate{Name: "more", Subnet: "tiny"}))
	d.clean()
}

func TestFourtyAtOnceGetFourtyAddresses(t *testing.T) {
	d := newDesk(t).cloud()
	errs := race(40, func(i int) error {
		_, err := d.Admission.CreateVM(ctx, d.User, opts, vmRequest(fmt.Sprint("vm", i)))
		return err
	})
	for _, err := range errs {
		require.NoError(t, err)
	}
	entries, _, err := d.KV.List(ctx, store.AddressPrefix(find[api.Subnet](d, opts.Project, "front").ID))
	require.NoError(t, err)
	require.Len(t, entries, 40)
	d.clean()
}

func TestWhatIsUsedStays(t *testing.T) {
	d := newDesk(t).cloud()
	a := d.Admission
	d.done(a.CreateVM(ctx, d.User, opts, vmRequest("web1")))
	vm := find[api.VM](d, opts.Project, "web1")
	for name, call := range map[string]func() (*api.Operation, error){
		"vpc":    func() (*api.Operation, error) { return a.DeleteVPC(ctx, d.User, opts, "net") },
		"subnet": func() (*api.Operation, error) { return a.DeleteSubnet(ctx, d.User, opts, "front") },
		"sg":     func() (*api.Operation, error) { return a.DeleteSecurityGroup(ctx, d.User, opts, "web") },
		"image":  func() (*api.Operation, error) { return a.DeleteImage(ctx, d.User, opts, "cirros") },
		"pool":   func() (*api.Operation, error) { return a.DeletePool(ctx, d.User, opts, "vms") },
		"port":   func() (*api.Operation, error) { return a.DeletePort(ctx, d.User, opts, vm.Spec.NICs[0].Port) },
	} {
		op, err := call()
		require.NotEmpty(t, d.refuse(problem.InUse, op, err).Fix, name)
	}
	d.done(a.DeleteVM(ctx, d.User, opts, "web1"))
	for _, err := range []error{
		second(a.DeleteSubnet(ctx, d.User, opts, "front")), second(a.DeleteSecurityGroup(ctx, d.User, opts, "web")),
		second(a.DeleteImage(ctx, d.User, opts, "cirros")), second(a.DeletePool(ctx, d.User, opts, "vms")),
	} {
		require.NoError(t, err)
	}
}

func second(_ *api.Operation, err error) error { return err }

func TestQuotaIsNeverExceeded(t *testing.T) {
	d := newDesk(t).cloud()
	project := find[api.Project](d, "", api.DefaultProject)
	project.Spec = api.ProjectSpec{VMs: 7, VCPUs: 100}
	draft := store.NewDraft(d.User)
	draft.Update(project)
	_, err := draft.Commit(ctx, d.KV)
	require.NoError(t, err)
	errs := race(20, func(i int) error {
		_, err := d.Admission.CreateVM(ctx, d.User, opts, vmRequest(fmt.Sprint("vm", i)))
		return err
	})
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
			continue
		}
		require.Equal(t, problem.Quota, problem.KindOf(err), "%v", err)
	}
	require.Equal(t, 7, won)
	vms, err := store.List[api.VM](ctx, d.KV, d.User, opts.Project)
	require.NoError(t, err)
	require.Len(t, vms, 7)
	op := find[api.Operation](d, "", vms[0].Operation)
	d.settle(op, api.OpFailed) // gives its share back
	r := vmRequest("late")
	r.VCPUs = 95
	none, err := d.Admission.CreateVM(ctx, d.User, opts, r)
	require.Contains(t, d.refuse(problem.Quota, none, err).What, "vCPUs")
	d.ask(d.Admission.CreateVM(ctx, d.User, opts, vmRequest("late")))
	d.clean()
}

// TestNoVMInADeletedSubnet lets VMs and the removal of their subnet race; whoever wins, the loser must notice.
func TestNoVMInADeletedSubnet(t *testing.T) {
	deleted := 0
	for round := range 15 {
		d := newDesk(t).cloud()
		errs := race(21, func(i int) error {
			if i == 3*round%21 {
				_, err := d.Admission.DeleteSubnet(ctx, d.User, opts, "front")
				return err
			}
			_, err := d.Admission.CreateVM(ctx, d.User, opts, vmRequest(fmt.Sprint("vm", i)))
			return err
		})
		ports, err := store.List[api.Port](ctx, d.KV, d.User, opts.Project)
		require.NoError(t, err)
		if errs[3*round%21] == nil {
			deleted++
			require.Empty(t, ports)
		} else {
			require.Equal(t, problem.InUse, problem.KindOf(errs[3*round%21]))
			require.Len(t, ports, 20)
		}
		for _, err := range errs {
			require.False(t, problem.Is(err, problem.Unavailable), "%v", err)
		}
		d.clean()
	}
	t.Logf("the removal won %d of 15 races", deleted)
}

func TestSecretsAreNowhereInTheClear(t *testing.T) {
	d := newDesk(t).cloud()
	const secret = "correct-horse-battery"
	r := vmRequest("web1")
	r.UserData = "#cloud-config\npassword: " + secret
	d.done(d.Admission.CreateVM(ctx, d.User, opts, r))
	entries, _, err := d.KV.List(ctx, store.Root)
	require.NoError(t, err)
	for _, e := range entries {
		require.False(t, strings.Contains(string(e.Value), secret), e.Key)
	}
}

func TestAnOperationShowsNoDigestOfASecret(t *testing.T) {
	d := newDesk(t).cloud()
	r := vmRequest("web1")
	keyed := admission.Options{Project: opts.Project, IdempotencyKey: "k"}
	op := d.ask(d.Admission.CreateVM(ctx, d.User, keyed, r))
	shown, err := json.Marshal(op.Public())
	require.NoError(t, err)
	sum := sha256.Sum256([]byte(r.UserData))
	require.NotContains(t, string(shown), hex.EncodeToString(sum[:]), "whoever has a guess could confirm it")

	r.UserData += "more"
	none, err := d.Admission.CreateVM(ctx, d.User, keyed, r)
	_ = d.refuse(problem.Mismatch, none, err)
}
