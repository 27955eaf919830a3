package api

import "time"

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
