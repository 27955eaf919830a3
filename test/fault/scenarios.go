package fault

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"strings"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/admission"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/store"
	"github.com/nextstack/nextstack/workflows/steps"
)

// project is where everything of a scenario is.
var project = admission.Options{Project: api.DefaultProject}

// with makes a request that needs a body.
func with[T any](send func(*admission.Admission, context.Context, auth.Handle, admission.Options, T) (*api.Operation, error), req T) Accept {
	return func(ctx context.Context, w *World, h auth.Handle) (*api.Operation, error) {
		return send(w.Admission, ctx, h, project, req)
	}
}

// on makes a request about something that is there, with a body.
func on[T any](send func(*admission.Admission, context.Context, auth.Handle, admission.Options, string, T) (*api.Operation, error), ref string, req T) Accept {
	return func(ctx context.Context, w *World, h auth.Handle) (*api.Operation, error) {
		return send(w.Admission, ctx, h, project, ref, req)
	}
}

type admit = admission.Admission

// Requests that scenarios share.
var (
	addPool     = with((*admit).CreatePool, api.PoolCreate{Name: "vms", Type: api.PoolDir, Path: "/vms"})
	importImage = with((*admit).CreateImage, api.ImageCreate{Name: "cirros", Format: api.FormatQCOW2, Path: "/images/cirros.img"})
	createVPC   = with((*admit).CreateVPC, api.VPCCreate{Name: "net", CIDR: "10.0.0.0/16"})
	createSub   = with((*admit).CreateSubnet, api.SubnetCreate{Name: "front", VPC: "net", CIDR: "10.0.1.0/24"})
	createSG    = CreateSG("web")
	createPort  = CreatePort("plug")
	createVM    = CreateVM("web1")
	addShared   = with((*admit).CreatePool, api.PoolCreate{Name: "shared", Type: api.PoolDir, Path: netDir + "/vms", Shared: true})
	stopVM      = on((*admit).StopVM, "web1", api.VMStop{})
	// deleteVM leaves a copy of the image in the pool of a node.
	deleteVM = about((*admit).DeleteVM, "web1")
)

// about makes a request about something that is there.
func about(send func(*admission.Admission, context.Context, auth.Handle, admission.Options, string) (*api.Operation, error), ref string) Accept {
	return func(ctx context.Context, w *World, h auth.Handle) (*api.Operation, error) {
		return send(w.Admission, ctx, h, project, ref)
	}
}

// CreateVM asks for a VM with two NICs and user-data.
func CreateVM(name string) Accept {
	return with((*admit).CreateVM, api.VMCreate{
		Name: name, VCPUs: 2, Memory: api.GiB, Image: "cirros", Pool: "vms", UserData: "#cloud-config\n", SecurityGroups: []string{"web"},
		NICs: []api.NICRequest{{Subnet: "front"}, {Subnet: "front", Address: "10.0.1.77"}},
	})
}

// CreatePort asks for a port that belongs to no VM.
func CreatePort(name string) Accept {
	return with((*admit).CreatePort, api.PortCreate{Name: name, Subnet: "front", SecurityGroups: []string{"web"}})
}

// CreateSG asks for a security group.
func CreateSG(name string) Accept {
	return with((*admit).CreateSecurityGroup, api.SecurityGroupCreate{Name: name, Rules: []api.Rule{{Direction: api.Ingress, Protocol: api.TCP, PortMin: 80}}})
}

// Repair asks for an audit that removes what nobody owns.
func Repair() Accept { return with((*admit).Audit, api.AuditRequest{Repair: true}) }

// Base returns the world that scenarios begin with: a pool, an image, and a network with one VM's worth of everything.
func Base(ctx context.Context) (*World, error) {
	w, err := NewWorld(ctx, nil)
	if err != nil {
		return nil, err
	}
	for _, accept := range []Accept{addPool, addShared, importImage, createVPC, createSub, createSG} {
		if _, err := w.Do(ctx, accept); err != nil {
			return nil, err
		}
	}
	return w, nil
}

// Scenarios returns at least one scenario for every operation, by the operation's kind.
func Scenarios() map[string][]Scenario {
	labels := map[string]string{"tier": "front"}
	rules := []api.Rule{{Direction: api.Egress, Protocol: api.AnyIP}}
	dns := []string{"9.9.9.9"}
	none := []string{}
	yes := true
	all := map[string][]Scenario{
		api.OpVMCreate: {
			{Name: "vm.create", Accept: createVM},
			{Name: "vm.create with volumes", Accept: makeVM("web1", func(r *api.VMCreate) {
				local(r)
				r.Volumes = []api.VMVolume{{Size: api.GiB}, {Name: "data", Size: 2 * api.GiB, Pool: "shared"}}
			}), Check: shows("data", "")},
			{Name: "vm.create, image copied before", Prepare: []Accept{createVM, deleteVM}, Accept: createVM, Check: fetched(false)},
			{Name: "vm.create, image on another node", Plant: copyElsewhere, Accept: createVM, Check: fetched(true), Spares: steps.OfferImage.Name},
		},
		api.OpVMDelete: {
			{Name: "vm.delete", Prepare: []Accept{createVM}, Accept: deleteVM},
			{Name: "vm.delete, stopped", Prepare: []Accept{createVM, stopVM}, Accept: deleteVM},
			{Name: "vm.delete on a dead node", Prepare: []Accept{createVM}, Plant: died("a1"), Accept: deleteVM},
			{Name: "vm.delete on a dead node, shared", Prepare: []Accept{makeVM("web1", nil)}, Plant: died("a1"), Accept: deleteVM},
		},
		api.OpVMStart: {
			{Name: "vm.start", Prepare: []Accept{createVM, stopVM}, Accept: about((*admit).StartVM, "web1")},
			{Name: "vm.start, running", Prepare: []Accept{createVM}, Accept: about((*admit).StartVM, "web1")},
		},
		api.OpVMStop: {
			{Name: "vm.stop", Prepare: []Accept{createVM}, Accept: stopVM},
			{Name: "vm.stop by force", Prepare: []Accept{createVM}, Accept: on((*admit).StopVM, "web1", api.VMStop{Force: true})},
			{Name: "vm.stop, stopped", Prepare: []Accept{createVM, stopVM}, Accept: stopVM},
		},
		api.OpVMReboot:    {{Name: "vm.reboot", Prepare: []Accept{createVM}, Accept: on((*admit).RebootVM, "web1", api.VMStop{})}},
		api.OpImageImport: {{Name: "image.import", Accept: with((*admit).CreateImage, api.ImageCreate{Name: "debian", Format: api.FormatRaw, Path: "/images/debian.img"})}},
		api.OpImageUpdate: {{Name: "image.update", Accept: on((*admit).UpdateImage, "cirros", api.ImageUpdate{Labels: &labels, Deprecated: &yes})}},
		api.OpImageExport: {{Name: "image.export", Accept: on((*admit).ExportImage, "cirros", api.ImageExport{Format: api.FormatVMDK})}},
		api.OpImageDelete: {{Name: "image.delete", Prepare: []Accept{createVM, deleteVM}, Accept: about((*admit).DeleteImage, "cirros")}},
		api.OpPoolAdd: {
			{Name: "pool.add", Accept: with((*admit).CreatePool, api.PoolCreate{Name: "fast", Type: api.PoolDir, Path: "/fast"})},
			{Name: "pool.add, Ceph", Accept: cephOn()},
			{Name: "pool.add, shared", Accept: with((*admit).CreatePool, api.PoolCreate{Name: "fast", Type: api.PoolDir, Path: netDir + "/fast", Shared: true})},
			{Name: "pool.add, GlusterFS", Accept: mountedPool(api.PoolGluster, "gv0/vms")},
			{Name: "pool.add, NFS", Accept: mountedPool(api.PoolNFS, "/srv/vms", "a1", "a2")},
		},
		api.OpPoolDelete: {
			{Name: "pool.delete", Prepare: []Accept{createVM, deleteVM}, Accept: about((*admit).DeletePool, "vms")},
			{Name: "pool.delete, Ceph", Prepare: []Accept{cephOn("a1", "a2")}, Accept: about((*admit).DeletePool, "fast")},
			{Name: "pool.delete, shared", Accept: about((*admit).DeletePool, "shared")},
			{Name: "pool.delete, GlusterFS", Prepare: []Accept{mountedPool(api.PoolGluster, "gv0")}, Accept: about((*admit).DeletePool, "fast")},
		},

		api.OpVPCCreate: {{Name: "vpc.create", Accept: with((*admit).CreateVPC, api.VPCCreate{Name: "other", CIDR: "10.8.0.0/16", Labels: labels})}},
		api.OpVPCUpdate: {{Name: "vpc.update", Accept: on((*admit).UpdateVPC, "net", api.VPCUpdate{Labels: &labels})}},
		api.OpVPCDelete: {{
			Name: "vpc.delete", Prepare: []Accept{with((*admit).CreateVPC, api.VPCCreate{Name: "other", CIDR: "10.8.0.0/16"})},
			Accept: about((*admit).DeleteVPC, "other"),
		}},
		api.OpSubnetCreate: {{Name: "subnet.create", Accept: with((*admit).CreateSubnet, api.SubnetCreate{Name: "rear", VPC: "net", CIDR: "10.0.2.0/24"})}},
		api.OpSubnetUpdate: {{Name: "subnet.update", Prepare: []Accept{createVM}, Accept: on((*admit).UpdateSubnet, "front", api.SubnetUpdate{DNS: &dns, Labels: &labels})}},
		api.OpSubnetDelete: {{Name: "subnet.delete", Accept: about((*admit).DeleteSubnet, "front")}},
		api.OpPortCreate:   {{Name: "port.create", Accept: createPort}},
		api.OpPortUpdate:   {{Name: "port.update", Prepare: []Accept{createPort}, Accept: on((*admit).UpdatePort, "plug", api.PortUpdate{SecurityGroups: &none})}},
		api.OpPortDelete:   {{Name: "port.delete", Prepare: []Accept{createPort}, Accept: about((*admit).DeletePort, "plug")}},
		api.OpSGCreate:     {{Name: "sg.create", Accept: with((*admit).CreateSecurityGroup, api.SecurityGroupCreate{Name: "db", Rules: rules})}},
		api.OpSGUpdate:     {{Name: "sg.update", Prepare: []Accept{createVM}, Accept: on((*admit).UpdateSecurityGroup, "web", api.SecurityGroupUpdate{Rules: &rules})}},
		api.OpSGDelete:     {{Name: "sg.delete", Accept: about((*admit).DeleteSecurityGroup, "web")}},

		api.OpAudit: {
			{Name: "audit", Prepare: []Accept{createVM}, Accept: with((*admit).Audit, api.AuditRequest{}), Looks: true},
			{
				Name: "audit with repair", Prepare: []Accept{createVM}, Accept: Repair(), Looks: true,
				Plant:  plantStrays,
				Ignore: func(line string) bool { return strings.Contains(line, strayMark) },
				Excuse: func(f api.Finding) bool { return strings.Contains(f.ID, strayMark) },
			},
		},
		api.OpNoop: {{Name: "noop", Accept: func(ctx context.Context, w *World, h auth.Handle) (*api.Operation, error) {
			return w.Admission.Noop(ctx, h, project)
		}}},
	}
	maps.Copy(all, moves())
	maps.Copy(all, hosts())
	maps.Copy(all, pools())
	maps.Copy(all, volumes())
	maps.Copy(all, checkpoints())
	for _, others := range []map[string][]Scenario{
		withVolumes(), givenVolumes(), flattening(), withCheckpoints(), checkpointsInCeph(), checkpointsMixed(), mistakes(), {api.OpVMMigrate: alongside()},
	} {
		for kind, more := range others {
			all[kind] = append(all[kind], more...)
		}
	}
	return all
}

// copyElsewhere gives the third node a copy of the image, which it has told of.
func copyElsewhere(ctx context.Context, w *World) error {
	pool, err := store.Find[api.Pool](ctx, w.KV, w.User, "", "vms")
	if err != nil {
		return err
	}
	image, err := store.Find[api.Image](ctx, w.KV, w.User, api.DefaultProject, "cirros")
	if err != nil {
		return err
	}
	n := w.Nodes[2] // too small to be preferred, even with a copy
	plan := steps.VMPlan{VM: api.NewID(), Name: "was", Disk: steps.DiskPlan{
		Volume: api.NewID(), Pool: pool.ID, PoolPath: pool.Spec.Path, Size: api.GiB,
		Image: image.ID, ImageSHA256: image.Status.SHA256, ImageSize: image.Status.Size,
	}}
	if err := n.disks.MakeDisk(ctx, plan, n.source, nil); err != nil {
		return err
	}
	if err := n.disks.RemoveDisk(ctx, plan); err != nil {
		return err
	}
	a, err := store.Get[api.Agent](ctx, w.KV, w.User, "", n.ID)
	if err != nil {
		return err
	}
	a.Status.Inventory.Pools = []api.PoolUsage{{Pool: pool.ID, Capacity: api.TiB, Free: api.TiB, Images: []string{image.Status.SHA256}}}
	d := store.NewDraft(auth.ControlPlane("fault"))
	d.Update(a)
	_, err = d.Commit(ctx, w.KV)
	return err
}

// fetched says what is wrong with where the image of the last VM came from: another node, or nowhere, because it was there.
func fetched(fromPeer bool) func(ctx context.Context, w *World) (string, error) {
	return func(ctx context.Context, w *World) (string, error) {
		ops, err := store.List[api.Operation](ctx, w.KV, w.User, "")
		if err != nil {
			return "", err
		}
		var last *api.Operation
		for _, op := range ops {
			if op.Kind == api.OpVMCreate && (last == nil || op.Created.After(last.Created)) {
				last = op
			}
		}
		for _, s := range last.Steps {
			var made steps.DiskMade
			if s.Name == "disk" && json.Unmarshal(s.Detail, &made) == nil && (made.Peer != "") == fromPeer && (made.Fetched > 0) == fromPeer {
				return "", nil
			}
		}
		return fmt.Sprintf("the image did not come from where it should in operation %s", last.ID), nil
	}
}

// strayMark is in the ID of everything that plantStrays leaves.
const strayMark = "57a57a57"

// plantStrays leaves in each part of the world one thing that nobody owns. A repair may get to them or not; what it must not
// do is touch anything else.
func plantStrays(ctx context.Context, w *World) error {
	id := strayMark + api.NewID()[8:]
	if err := w.Network.WireVPC(ctx, steps.VPCWiring{VPC: id, Name: "stray", Project: api.DefaultProject, CIDR: "10.9.0.0/16"}); err != nil {
		return err
	}
	w.Nodes[0].Stray(ctx, storage.KindVolume, id)
	if err := w.Nodes[0].Compute.Create(ctx, steps.VMPlan{VM: id}, compute.DomainFiles{Disk: compute.QCOW2("disk")}); err != nil {
		return err
	}
	_, err := w.KV.Commit(ctx, store.Tx{Puts: []store.Put{{
		Key: store.NameClaim(api.KindVM, api.DefaultProject, "stray-"+strayMark), Value: []byte(id),
	}}})
	return err
}
