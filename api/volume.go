package api

import (
	"slices"
	"strings"
	"time"

	"github.com/nextstack/nextstack/api/problem"
)

// Volume is a disk. It may belong to a VM as its root disk, or be a thing of its own that is attached to VMs and outlives them.
type Volume struct {
	Meta
	Spec   VolumeSpec   `json:"spec"`
	Status VolumeStatus `json:"status"`
}

// ResourceKind implements Resource.
func (*Volume) ResourceKind() Kind { return KindVolume }

// VolumeSpec says what the volume is.
type VolumeSpec struct {
	Size      int64     `json:"size" doc:"Bytes"`
	Pool      string    `json:"pool" doc:"Pool ID"`
	Image     string    `json:"image,omitempty" doc:"Image ID it was made from"`
	VM        string    `json:"vm,omitempty" doc:"VM ID it belongs to"`
	Root      bool      `json:"root" doc:"Lives and dies with its VM"`
	Protected bool      `json:"protected,omitempty" doc:"It cannot be deleted"`
	Shareable bool      `json:"shareable,omitempty" doc:"It may be attached to several VMs at once, which must agree on who writes"`
	QoS       VolumeQoS `json:"qos,omitzero"`
}

// VolumeQoS limits what a VM may ask of a volume. 0: no limit.
type VolumeQoS struct {
	IOPS           int64 `json:"iops,omitempty" doc:"Requests per second"`
	IOPSBurst      int64 `json:"iopsBurst,omitempty" doc:"Requests per second for a short time"`
	Bandwidth      int64 `json:"bandwidth,omitempty" doc:"Bytes per second"`
	BandwidthBurst int64 `json:"bandwidthBurst,omitempty" doc:"Bytes per second for a short time"`
}

// VolumeStatus says where the volume is.
type VolumeStatus struct {
	Phase  Phase  `json:"phase"`
	Reason string `json:"reason,omitempty"`
	Agent  string `json:"agent,omitempty" doc:"Agent ID whose pool directory holds the file; of a shared pool, the node of its VM"`
	// Layer is what guests write to now. A volume of a file pool is a chain of files, one more for each snapshot.
	Layer       string       `json:"layer,omitempty" doc:"Name of its topmost file; empty: the volume's ID"`
	Snapshot    string       `json:"snapshot,omitempty" doc:"Snapshot ID that its content goes on from"`
	Attachments []Attachment `json:"attachments,omitempty" doc:"VMs that have it besides the one it belongs to"`
	Deleted     time.Time    `json:"deleted,omitzero" doc:"When it was put into the recycle bin"`
	Expires     time.Time    `json:"expires,omitzero" doc:"When it is removed from the recycle bin"`
}

// Attachment is a volume in a VM.
type Attachment struct {
	VM       string `json:"vm" doc:"VM ID"`
	Device   string `json:"device" doc:"What the hypervisor calls the disk; guests find it by its serial number, the first 20 digits of the volume's ID"`
	ReadOnly bool   `json:"readOnly,omitempty"`
}

// LayerName returns the name of the file that a volume of a file pool is written to.
func (v *Volume) LayerName() string {
	if v.Status.Layer == "" {
		return v.ID
	}
	return v.Status.Layer
}

// Attachment returns how a VM has the volume; nil: it has not.
func (v *Volume) Attachment(vm string) *Attachment {
	if i := slices.IndexFunc(v.Status.Attachments, func(a Attachment) bool { return a.VM == vm }); i >= 0 {
		return &v.Status.Attachments[i]
	}
	return nil
}

// VMs returns the IDs of the VMs that have the volume: the one it belongs to, and those that it is attached to.
func (v *Volume) VMs() []string {
	var out []string
	if v.Spec.Root {
		out = append(out, v.Spec.VM)
	}
	for _, a := range v.Status.Attachments {
		out = append(out, a.VM)
	}
	return out
}

// RootDevice is what hypervisors call the root disk of a VM.
const RootDevice = "vda"

// Limits of volumes.
const (
	MaxSnapshots = 32 // of one volume: a chain that is longer makes it slow
	MaxQoS       = 1 << 40
)

// VolumeCreate is the request for a volume. Wherever a resource is named, its name or its ID will do.
type VolumeCreate struct {
	Name      string            `json:"name"`
	Labels    map[string]string `json:"labels,omitempty"`
	Size      int64             `json:"size,omitempty" doc:"Bytes; 0: the size of what it is made from"`
	Pool      string            `json:"pool,omitempty" doc:"Empty: that of what it is copied from, or the only ready pool"`
	Image     string            `json:"image,omitempty" doc:"Image that it begins with"`
	Snapshot  string            `json:"snapshot,omitempty" doc:"Snapshot that it becomes a copy of"`
	Volume    string            `json:"volume,omitempty" doc:"Volume that it becomes a copy of; no VM that runs may have that one"`
	Node      string            `json:"node,omitempty" doc:"Agent to keep it, if the pool is not shared; empty: the one with the most space"`
	VM        string            `json:"vm,omitempty" doc:"VM that it is meant for: it is made where that VM reaches it"`
	Attach    bool              `json:"attach,omitempty" doc:"It is attached to that VM as well, whether that runs or not"`
	Protected bool              `json:"protected,omitempty" doc:"It cannot be deleted"`
	Shareable bool              `json:"shareable,omitempty" doc:"It may be attached to several VMs at once, which must agree on who writes; in a pool of files it has no snapshots then"`
	QoS       VolumeQoS         `json:"qos,omitzero"`
}

// Validate checks the shape of the request; whether the names exist is found out when it is accepted.
func (r *VolumeCreate) Validate() error {
	var v problem.Validation
	CheckName(&v, "name", r.Name)
	CheckLabels(&v, "labels", r.Labels)
	sources := 0
	for _, s := range []struct{ path, ref string }{
		{"pool", r.Pool},
		{"image", r.Image},
		{"snapshot", r.Snapshot},
		{"volume", r.Volume},
		{"node", r.Node},
		{"vm", r.VM},
	} {
		if s.ref == "" {
			continue
		}
		CheckRef(&v, s.path, s.ref)
		if s.path == "image" || s.path == "snapshot" || s.path == "volume" {
			sources++
		}
		v.Check(sources < 2 || s.path == "node" || s.path == "vm", s.path, s.ref, "give one of image, snapshot and volume, or none for an empty volume")
	}
	if r.Size != 0 || sources == 0 {
		checkSize(&v, r.Size)
	}
	v.Check(r.Node == "" || r.VM == "", "node", r.Node, "give either node or vm")
	v.Check(!r.Attach || r.VM != "", "attach", r.Attach, "needs vm")
	r.QoS.check(&v, "qos")
	return v.Err("volume " + r.Name)
}

func checkSize(v *problem.Validation, size int64) {
	v.Check(size != 0, "size", nil, "is missing: 1 MiB to 64 TiB, in bytes, a multiple of 1 MiB")
	v.Check(size == 0 || size >= MiB && size <= MaxDisk && size%MiB == 0, "size", size, "must be 1 MiB to 64 TiB, in bytes, a multiple of 1 MiB")
}

func (q *VolumeQoS) check(v *problem.Validation, path string) {
	for _, f := range []struct {
		name         string
		value, burst int64
	}{{"iops", q.IOPS, q.IOPSBurst}, {"bandwidth", q.Bandwidth, q.BandwidthBurst}} {
		v.Check(f.value >= 0 && f.value <= MaxQoS, path+"."+f.name, f.value, "must be 0 (no limit) to %d", int64(MaxQoS))
		v.Check(f.burst == 0 || f.value > 0 && f.burst >= f.value && f.burst <= MaxQoS, path+"."+f.name+"Burst", f.burst, "must be 0, or at least %s, which must be given", f.name)
	}
}

// VolumeUpdate changes what is decided about a volume. Nil fields stay as they are.
type VolumeUpdate struct {
	Name      *string            `json:"name,omitempty"`
	Labels    *map[string]string `json:"labels,omitempty"`
	Protected *bool              `json:"protected,omitempty"`
	Shareable *bool              `json:"shareable,omitempty"`
	QoS       *VolumeQoS         `json:"qos,omitempty" doc:"All limits at once: those that are left out are none"`
}

// Validate checks the shape of the request.
func (r *VolumeUpdate) Validate() error {
	var v problem.Validation
	if r.Name != nil {
		CheckName(&v, "name", *r.Name)
	}
	if r.Labels != nil {
		CheckLabels(&v, "labels", *r.Labels)
	}
	if r.QoS != nil {
		r.QoS.check(&v, "qos")
	}
	return v.Err("volume update")
}

// VolumeAttach asks for a volume to be given to a VM.
type VolumeAttach struct {
	VM       string `json:"vm"`
	ReadOnly bool   `json:"readOnly,omitempty"`
}

// Validate checks the shape of the request.
func (r *VolumeAttach) Validate() error {
	var v problem.Validation
	CheckRef(&v, "vm", r.VM)
	return v.Err("attach request")
}

// VolumeDetach asks for a volume to be taken from a VM.
type VolumeDetach struct {
	VM string `json:"vm,omitempty" doc:"Empty: the only one that has it"`
}

// Validate checks the shape of the request.
func (r *VolumeDetach) Validate() error {
	var v problem.Validation
	if r.VM != "" {
		CheckRef(&v, "vm", r.VM)
	}
	return v.Err("detach request")
}

// VolumeResize asks for a volume to become bigger.
type VolumeResize struct {
	Size int64 `json:"size" doc:"Bytes; a volume never shrinks"`
}

// Validate checks the shape of the request.
func (r *VolumeResize) Validate() error {
	var v problem.Validation
	checkSize(&v, r.Size)
	return v.Err("resize request")
}

// VolumeFlatten is what the acceptance of making a volume independent of its image decided.
type VolumeFlatten struct {
	Image string `json:"image"` // that it needs no more
}

// VolumeMigrate asks for a volume to be brought into another pool.
type VolumeMigrate struct {
	Pool      string `json:"pool" doc:"Pool that it goes to"`
	Node      string `json:"node,omitempty" doc:"Agent to keep it, if that pool is not shared and no VM has the volume; empty: the one with the most space"`
	Bandwidth int64  `json:"bandwidth,omitempty" doc:"Bytes per second at most; 0: no limit"`
}

// Validate checks the shape of the request.
func (r *VolumeMigrate) Validate() error {
	var v problem.Validation
	CheckRef(&v, "pool", r.Pool)
	if r.Node != "" {
		CheckRef(&v, "node", r.Node)
	}
	CheckBandwidth(&v, r.Bandwidth)
	return v.Err("request to move a volume")
}

// VolumeExport asks for what a volume shows, or one of its snapshots, as a file to download. The operation's result is an
// ImageExported.
type VolumeExport struct {
	Format   string `json:"format,omitempty" enum:"qcow2,raw,vmdk,vdi,vhdx,vpc" default:"qcow2"`
	Snapshot string `json:"snapshot,omitempty" doc:"Snapshot of the volume to export instead; empty: the volume as it is, which no VM that runs may have"`
}

// Validate checks the shape of the request.
func (r *VolumeExport) Validate() error {
	var v problem.Validation
	v.Check(r.Format == "" || IsImageFormat(r.Format), "format", r.Format, "must be one of %s", strings.Join(ImageFormats(), ", "))
	if r.Snapshot != "" {
		CheckRef(&v, "snapshot", r.Snapshot)
	}
	return v.Err("export")
}

// VolumeDelete says how a volume is deleted.
type VolumeDelete struct {
	Now       bool `json:"now,omitempty" doc:"For good, instead of into the recycle bin"`
	Snapshots bool `json:"snapshots,omitempty" doc:"With all its snapshots"`
}

// VolumeMake is what the acceptance of a new volume decided, for the one who makes it.
type VolumeMake struct {
	Node string `json:"node,omitempty"` // agent that it must be on
	// From is the volume whose content it begins with; nil: it is empty, or made from the image of its record.
	From *VolumeOrigin `json:"from,omitempty"`
	// Attach is how a VM gets it; nil: none does.
	Attach *DiskOrder `json:"attach,omitempty"`
}

// VolumeOrigin is what a copy is made of.
type VolumeOrigin struct {
	Volume   string `json:"volume"`
	Layer    string `json:"layer,omitempty"`    // of a pool of files: what it shows is copied; empty: the volume's first
	Snapshot string `json:"snapshot,omitempty"` // of other pools
}

// DiskOrder is what the acceptance of an attachment or its end decided.
type DiskOrder struct {
	VM       string `json:"vm"`
	Device   string `json:"device"`
	ReadOnly bool   `json:"readOnly,omitempty"`
	// Had: the VM has had it before, and keeps it whatever becomes of the operation.
	Had bool `json:"had,omitempty"`
}

// VolumeMove is what the acceptance of a volume's move to another pool decided.
type VolumeMove struct {
	From  PoolOnNode `json:"from"`
	To    PoolOnNode `json:"to"`
	Layer string     `json:"layer,omitempty"` // its file in the other pool; empty: the volume's ID
	Agent AgentRef   `json:"agent"`           // that has both pools, and makes the copy
	// Bandwidth is bytes per second at most; 0: no limit.
	Bandwidth int64 `json:"bandwidth,omitempty"`
}

// VolumeMoving is how a volume would go to another pool.
type VolumeMoving struct {
	Volume Ref    `json:"volume"`
	From   string `json:"from" doc:"Pool name"`
	To     string `json:"to" doc:"Pool name"`
	VM     *Ref   `json:"vm,omitempty" doc:"That has it, and goes on with the copy"`
	Live   bool   `json:"live" doc:"That VM runs meanwhile"`
	Node   string `json:"node,omitempty" doc:"Agent name of the one that makes the copy"`
	Size   int64  `json:"size" doc:"Bytes of the volume: no more than that is copied"`
	// Seconds is an upper limit only if the pools are at least as fast as the bandwidth.
	Seconds int64 `json:"seconds,omitempty" doc:"How long it takes to copy as much at the bandwidth that is asked for; 0: none is, and it depends on the pools"`
}

// VolumeRemoval is what has to be removed of a volume, in this order.
type VolumeRemoval struct {
	Snapshots []string `json:"snapshots,omitempty"` // by ID, of pools whose snapshots have names
	Layers    []string `json:"layers"`              // empty string: the volume's first
}

// VolumeTuning is how a volume is limited, and how it was before.
type VolumeTuning struct {
	QoS    VolumeQoS `json:"qos"`
	Before VolumeQoS `json:"before"`
}
