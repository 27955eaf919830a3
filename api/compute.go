package api

import (
	"net/netip"
	"regexp"
	"strings"
	"time"

	"github.com/nextstack/nextstack/api/problem"
)

// VM is a virtual machine.
type VM struct {
	Meta
	Spec   VMSpec   `json:"spec"`
	Status VMStatus `json:"status"`
}

// ResourceKind implements Resource.
func (*VM) ResourceKind() Kind { return KindVM }

// VMSpec is what was asked for. References are resource IDs.
type VMSpec struct {
	VCPUs    int      `json:"vcpus"`
	Memory   int64    `json:"memory" doc:"Bytes"`
	Image    string   `json:"image" doc:"Image ID"`
	RootDisk int64    `json:"rootDisk" doc:"Bytes"`
	Pool     string   `json:"pool" doc:"Pool ID of the root disk"`
	NICs     []NIC    `json:"nics"`
	Hostname string   `json:"hostname"`
	SSHKeys  []string `json:"sshKeys,omitempty"`
	UserData bool     `json:"userData,omitempty" doc:"Whether the VM has user-data; the text itself is kept encrypted and never shown"`
	Placing
	HA bool `json:"ha,omitempty" doc:"Restart it on another node when its own is dead, if that reaches its disk"`
}

// Placing is what a VM asks of its node.
type Placing struct {
	NodeID     string            `json:"nodeId,omitempty" doc:"Agent it must be on; it is never moved from there"`
	NodeLabels map[string]string `json:"nodeLabels,omitempty" doc:"Labels that its node must have"`
	Group      string            `json:"group,omitempty" doc:"VM group it belongs to"`
	Arch       string            `json:"arch,omitempty" doc:"Architecture of its node, as agents report it; empty: any"`
	CPUModel   string            `json:"cpuModel,omitempty" doc:"Named CPU model its node must be able to give it; empty: the node's choice"`
	Placement  string            `json:"placement,omitempty" enum:"spread,pack" doc:"Which of the nodes with room is the better one: spread prefers the emptiest, pack the fullest; empty: what the server does by default"`
}

// Strategies of placement.
const (
	Spread = "spread"
	Pack   = "pack"
)

// NIC is a network interface as it was asked for.
type NIC struct {
	Port           string   `json:"port" doc:"Port ID"`
	Subnet         string   `json:"subnet" doc:"Subnet ID"`
	Address        string   `json:"address,omitempty" doc:"Fixed IP address; empty: the next free one"`
	SecurityGroups []string `json:"securityGroups,omitempty" doc:"Security group IDs"`
}

// VMStatus is what is.
type VMStatus struct {
	Phase     Phase     `json:"phase"`
	Reason    string    `json:"reason,omitempty" doc:"Why the phase is not what one would hope"`
	Agent     string    `json:"agent,omitempty" doc:"Agent ID of the node it is on"`
	AgentName string    `json:"agentName,omitempty"`
	MovingTo  string    `json:"movingTo,omitempty" doc:"Agent ID of the node it is being moved to"`
	Addresses []string  `json:"addresses,omitempty"`
	Volumes   []string  `json:"volumes,omitempty" doc:"Volume IDs, root disk first"`
	Observed  time.Time `json:"observed,omitzero" doc:"When the agent last saw the VM"`

	Checkpoint string `json:"checkpoint,omitempty" doc:"Checkpoint ID that it goes on from"`
}

// VMCreate is the request for a VM. Wherever a resource is named, its name or its ID will do.
type VMCreate struct {
	Name           string            `json:"name"`
	Labels         map[string]string `json:"labels,omitempty"`
	VCPUs          int               `json:"vcpus" doc:"Virtual CPUs, 1 to 256"`
	Memory         int64             `json:"memory" doc:"Bytes, a multiple of 1 MiB, 32 MiB to 4 TiB"`
	Image          string            `json:"image"`
	RootDisk       int64             `json:"rootDisk,omitempty" doc:"Bytes; 0: the size of the image"`
	Pool           string            `json:"pool,omitempty" doc:"Pool of the root disk; empty: the only ready pool"`
	Volumes        []VMVolume        `json:"volumes,omitempty" doc:"Empty volumes that are made with it, and which it has as vdc, vdd and so on; they outlive it"`
	Attach         []VMAttach        `json:"attach,omitempty" doc:"Volumes that exist already, and which it has from its first start, after those that are made with it"`
	NICs           []NICRequest      `json:"nics,omitempty"`
	SecurityGroups []string          `json:"securityGroups,omitempty" doc:"For every NIC that names none itself"`
	Hostname       string            `json:"hostname,omitempty" doc:"Empty: the name"`
	UserData       string            `json:"userData,omitempty" doc:"cloud-init user-data, at most 64 KiB; kept encrypted"`
	SSHKeys        []string          `json:"sshKeys,omitempty" doc:"Public keys, one line each"`
	Placing
	HA bool `json:"ha,omitempty" doc:"Restart it on another node when its own is dead; its pool must be shared"`
}

// VMVolume asks for an empty volume for a VM that is made.
type VMVolume struct {
	Name string `json:"name,omitempty" doc:"Empty: made from the name of the VM"`
	Size int64  `json:"size" doc:"Bytes, a multiple of 1 MiB"`
	Pool string `json:"pool,omitempty" doc:"Empty: that of the root disk"`
}

// VMAttach asks for a volume that exists already to be given to a VM that is made.
type VMAttach struct {
	Volume   string `json:"volume" doc:"Name or ID"`
	ReadOnly bool   `json:"readOnly,omitempty"`
}

// VMMake is what the acceptance of a new VM decided of the volumes that it gets.
type VMMake struct {
	Attach []VMDisk `json:"attach,omitempty"` // those that exist already
}

// VMDisk is a volume as a VM is to have it.
type VMDisk struct {
	Volume   string `json:"volume"` // ID
	Device   string `json:"device"`
	ReadOnly bool   `json:"readOnly,omitempty"`
}

// NICRequest asks for one network interface.
type NICRequest struct {
	Subnet         string   `json:"subnet"`
	Address        string   `json:"address,omitempty" doc:"Fixed IP address inside the subnet"`
	SecurityGroups []string `json:"securityGroups,omitempty"`
}

// Limits of a VM request. They keep mistakes (a memory size in KiB, say) from reaching a node.
const (
	MaxVCPUs    = 256
	MinMemory   = 32 * MiB
	MaxMemory   = 4 * TiB
	MaxDisk     = 64 * TiB
	MaxNICs     = 16
	MaxVolumes  = 24 // besides the root disk
	MaxUserData = 64 * KiB
	MaxSSHKeys  = 32
)

var sshKeyRE = regexp.MustCompile(`^(ssh-(rsa|ed25519)|ecdsa-sha2-nistp(256|384|521)|sk-(ssh-ed25519|ecdsa-sha2-nistp256)@openssh\.com) [A-Za-z0-9+/=]{16,}( [^\n\r]*)?$`)

// Validate checks the shape of the request; whether the names exist is found out when it is accepted.
func (r *VMCreate) Validate() error {
	var v problem.Validation
	CheckName(&v, "name", r.Name)
	CheckLabels(&v, "labels", r.Labels)
	v.Check(r.VCPUs >= 1 && r.VCPUs <= MaxVCPUs, "vcpus", r.VCPUs, "must be 1 to %d", MaxVCPUs)
	v.Check(r.Memory >= MinMemory && r.Memory <= MaxMemory && r.Memory%MiB == 0, "memory", r.Memory, "must be 32 MiB to 4 TiB, in bytes, a multiple of 1 MiB")
	v.Check(r.RootDisk == 0 || r.RootDisk >= MiB && r.RootDisk <= MaxDisk && r.RootDisk%MiB == 0, "rootDisk", r.RootDisk, "must be 0 or 1 MiB to 64 TiB, in bytes, a multiple of 1 MiB")
	CheckRef(&v, "image", r.Image)
	if r.Pool != "" {
		CheckRef(&v, "pool", r.Pool)
	}
	if r.Hostname != "" {
		v.Check(nameRE.MatchString(r.Hostname), "hostname", r.Hostname, "must be one DNS label: a-z, 0-9 and '-', at most 63 characters")
	}
	v.Check(len(r.Volumes)+len(r.Attach) <= MaxVolumes, "volumes", len(r.Volumes)+len(r.Attach), "at most %d, with those that it is given", MaxVolumes)
	for i, d := range r.Volumes {
		p := pathIndex("volumes", i)
		if d.Name != "" {
			CheckName(&v, p+".name", d.Name)
		}
		v.Check(d.Size >= MiB && d.Size <= MaxDisk && d.Size%MiB == 0, p+".size", d.Size, "must be 1 MiB to 64 TiB, in bytes, a multiple of 1 MiB")
		if d.Pool != "" {
			CheckRef(&v, p+".pool", d.Pool)
		}
	}
	for i, at := range r.Attach {
		CheckRef(&v, pathIndex("attach", i)+".volume", at.Volume)
	}
	v.Check(len(r.NICs) <= MaxNICs, "nics", len(r.NICs), "at most %d", MaxNICs)
	for i, n := range r.NICs {
		p := pathIndex("nics", i)
		CheckRef(&v, p+".subnet", n.Subnet)
		if n.Address != "" {
			_, err := netip.ParseAddr(n.Address)
			v.Check(err == nil, p+".address", n.Address, "must be an IP address, like 10.1.0.5")
		}
		checkRefs(&v, p+".securityGroups", n.SecurityGroups)
	}
	checkRefs(&v, "securityGroups", r.SecurityGroups)
	v.Check(int64(len(r.UserData)) <= MaxUserData, "userData", len(r.UserData), "at most 64 KiB")
	v.Check(len(r.SSHKeys) <= MaxSSHKeys, "sshKeys", len(r.SSHKeys), "at most %d", MaxSSHKeys)
	for i, k := range r.SSHKeys {
		v.Check(sshKeyRE.MatchString(strings.TrimSpace(k)), pathIndex("sshKeys", i), k, "must be one OpenSSH public key line, like \"ssh-ed25519 AAAA... me@host\"")
	}
	r.Placing.check(&v)
	return v.Err("vm " + r.Name)
}

var cpuModelRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

func (p *Placing) check(v *problem.Validation) {
	if p.NodeID != "" {
		CheckRef(v, "nodeId", p.NodeID)
	}
	if p.Group != "" {
		CheckRef(v, "group", p.Group)
	}
	CheckLabels(v, "nodeLabels", p.NodeLabels)
	v.Check(p.Arch == "" || cpuModelRE.MatchString(p.Arch), "arch", p.Arch, "must be an architecture as agents report it, like x86_64")
	v.Check(p.Placement == "" || p.Placement == Spread || p.Placement == Pack, "placement", p.Placement, "must be %s or %s, or nothing: then the server's default counts", Spread, Pack)
	v.Check(p.CPUModel == "" || cpuModelRE.MatchString(p.CPUModel), "cpuModel", p.CPUModel, "must be the name of a CPU model, like EPYC or Skylake-Server")
}

// VMUpdate changes a VM while it runs. Nil fields stay as they are.
type VMUpdate struct {
	Labels     *map[string]string `json:"labels,omitempty"`
	HA         *bool              `json:"ha,omitempty"`
	NodeID     *string            `json:"nodeId,omitempty" doc:"Pin it to a node; it must be on that node. Empty: no pin"`
	NodeLabels *map[string]string `json:"nodeLabels,omitempty" doc:"Count from the next move on"`
	Group      *string            `json:"group,omitempty" doc:"Counts at once; a VM that a hard rule would not have where it is must be moved first. Empty: none"`
	Placement  *string            `json:"placement,omitempty" doc:"spread or pack; counts from the next move on; empty: what the server does by default"`
}

// Validate checks the shape of the request.
func (r *VMUpdate) Validate() error {
	var v problem.Validation
	if r.Labels != nil {
		CheckLabels(&v, "labels", *r.Labels)
	}
	if r.NodeLabels != nil {
		CheckLabels(&v, "nodeLabels", *r.NodeLabels)
	}
	if p := r.Placement; p != nil {
		v.Check(*p == "" || *p == Spread || *p == Pack, "placement", *p, "must be %s or %s, or empty: then the server's default counts", Spread, Pack)
	}
	for path, ref := range map[string]*string{"nodeId": r.NodeID, "group": r.Group} {
		if ref != nil && *ref != "" {
			CheckRef(&v, path, *ref)
		}
	}
	return v.Err("vm update")
}

// VMMigrate asks to move a VM to another node.
type VMMigrate struct {
	To           string `json:"to,omitempty" doc:"Agent to move to; empty: the best one"`
	Cold         bool   `json:"cold,omitempty" doc:"Stop the guest, move it and start it again; a stopped VM is always moved like this, and stays stopped"`
	CopyStorage  bool   `json:"copyStorage,omitempty" doc:"Copy its disks whose pools are not shared"`
	Bandwidth    int64  `json:"bandwidth,omitempty" doc:"Bytes per second at most; 0: no limit"`
	MaxDowntime  int    `json:"maxDowntime,omitempty" doc:"Milliseconds that the guest may stand still; default 300"`
	AutoConverge bool   `json:"autoConverge,omitempty" doc:"Slow the guest's processors down if it changes memory faster than it can be sent"`
	PostCopy     bool   `json:"postCopy,omitempty" doc:"If it does not converge, let it go on at the target and fetch its memory from there"`
	Timeout      int    `json:"timeout,omitempty" doc:"Seconds until a move that does not converge is given up; default 3600, at most 86400"`
}

// Validate checks the shape of the request.
func (r *VMMigrate) Validate() error {
	var v problem.Validation
	if r.To != "" {
		CheckRef(&v, "to", r.To)
	}
	CheckBandwidth(&v, r.Bandwidth)
	v.Check(r.MaxDowntime >= 0 && r.MaxDowntime <= 60_000, "maxDowntime", r.MaxDowntime, "must be 0 to 60000 milliseconds")
	v.Check(r.Timeout >= 0 && r.Timeout <= 86_400, "timeout", r.Timeout, "must be 0 to 86400 seconds")
	v.Check(!r.Cold || !r.AutoConverge && !r.PostCopy && r.MaxDowntime == 0, "cold", r.Cold, "autoConverge, postCopy and maxDowntime are for live moves")
	return v.Err("migrate request")
}

// VMGroup keeps VMs together or apart.
type VMGroup struct {
	Meta
	Spec   VMGroupSpec    `json:"spec"`
	Status ResourceStatus `json:"status"`
}

// ResourceKind implements Resource.
func (*VMGroup) ResourceKind() Kind { return KindVMGroup }

// Policies of VM groups.
const (
	Affinity     = "affinity"
	AntiAffinity = "anti-affinity"
)

// VMGroupSpec is the rule of a group.
type VMGroupSpec struct {
	Policy string `json:"policy" enum:"affinity,anti-affinity" doc:"affinity: on one node; anti-affinity: each on another"`
	Soft   bool   `json:"soft,omitempty" doc:"A wish rather than a rule"`
}

// VMGroupCreate is the request for a VM group.
type VMGroupCreate struct {
	Name   string            `json:"name"`
	Labels map[string]string `json:"labels,omitempty"`
	VMGroupSpec
}

// Validate checks the shape of the request.
func (r *VMGroupCreate) Validate() error {
	var v problem.Validation
	CheckName(&v, "name", r.Name)
	CheckLabels(&v, "labels", r.Labels)
	v.Check(r.Policy == Affinity || r.Policy == AntiAffinity, "policy", r.Policy, "must be %s or %s", Affinity, AntiAffinity)
	return v.Err("vm group " + r.Name)
}

// VMStop is the request to stop or reboot a VM.
type VMStop struct {
	Force   bool `json:"force,omitempty" doc:"Cut the power instead of asking the guest"`
	Timeout int  `json:"timeout,omitempty" doc:"Seconds to wait for the guest before the power is cut; default 60, at most 3600"`
}

// Validate checks the shape of the request.
func (r *VMStop) Validate() error {
	var v problem.Validation
	v.Check(r.Timeout >= 0 && r.Timeout <= 3600, "timeout", r.Timeout, "must be 0 to 3600 seconds")
	return v.Err("stop request")
}

// VMDelete says how a VM is deleted.
type VMDelete struct {
	Snapshots bool `json:"snapshots,omitempty" doc:"With all snapshots of its root disk, and all its checkpoints"`
}

// Seed is what a VM's cloud-init gets; only the agent that runs the VM may read it.
type Seed struct {
	InstanceID string   `json:"instanceId"`
	Hostname   string   `json:"hostname"`
	SSHKeys    []string `json:"sshKeys,omitempty"`
	UserData   string   `json:"userData,omitempty"`
}
