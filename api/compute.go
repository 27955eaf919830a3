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
}

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
	Addresses []string  `json:"addresses,omitempty"`
	Volumes   []string  `json:"volumes,omitempty" doc:"Volume IDs, root disk first"`
	Observed  time.Time `json:"observed,omitzero" doc:"When the agent last saw the VM"`
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
	NICs           []NICRequest      `json:"nics,omitempty"`
	SecurityGroups []string          `json:"securityGroups,omitempty" doc:"For every NIC that names none itself"`
	Hostname       string            `json:"hostname,omitempty" doc:"Empty: the name"`
	UserData       string            `json:"userData,omitempty" doc:"cloud-init user-data, at most 64 KiB; kept encrypted"`
	SSHKeys        []string          `json:"sshKeys,omitempty" doc:"Public keys, one line each"`
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
	return v.Err("vm " + r.Name)
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

// Agent is a node: one machine with an agent on it.
type Agent struct {
	Meta
	Spec   AgentSpec   `json:"spec"`
	Status AgentStatus `json:"status"`
}

// ResourceKind implements Resource.
func (*Agent) ResourceKind() Kind { return KindAgent }

// AgentSpec is what an operator decides about a node.
type AgentSpec struct {
	ReservedMemory int64   `json:"reservedMemory" doc:"Bytes kept for the host itself"`
	CPURatio       float64 `json:"cpuRatio" doc:"How many vCPUs may be promised per core"`
}

// AgentStatus is what a node reports.
type AgentStatus struct {
	Phase     Phase     `json:"phase" doc:"ready or unavailable"`
	Reason    string    `json:"reason,omitempty"`
	Observed  time.Time `json:"observed,omitzero" doc:"When it last reported"`
	Inventory Inventory `json:"inventory"`
	Claimed   Amount    `json:"claimed" doc:"Promised to VMs"`
}

// Amount is a quantity of compute.
type Amount struct {
	VCPUs  int   `json:"vcpus"`
	Memory int64 `json:"memory" doc:"Bytes"`
}

// Inventory is what a node has. Nothing in it is assumed: all comes from libvirt and the kernel of that node.
type Inventory struct {
	Hostname    string            `json:"hostname"`
	Arch        string            `json:"arch" doc:"As libvirt says it: x86_64, aarch64, riscv64..."`
	Accel       string            `json:"accel" doc:"kvm or tcg"`
	Machine     string            `json:"machine" doc:"Machine type for guests"`
	Emulator    string            `json:"emulator"`
	CPUModel    string            `json:"cpuModel"`
	Cores       int               `json:"cores"`
	Memory      int64             `json:"memory" doc:"Bytes"`
	Versions    map[string]string `json:"versions,omitempty" doc:"libvirt, qemu, ovs, kernel, agent"`
	Pools       []PoolUsage       `json:"pools,omitempty"`
	OVNChassis  string            `json:"ovnChassis,omitempty" doc:"system-id of the node in OVN"`
	UserspaceDP bool              `json:"userspaceDatapath,omitempty" doc:"OVS runs without its kernel module, so guest NIC offloads must be off"`
}

// PoolUsage is the room of one pool as one node sees it.
type PoolUsage struct {
	Pool     string `json:"pool" doc:"Pool ID"`
	Capacity int64  `json:"capacity" doc:"Bytes"`
	Free     int64  `json:"free" doc:"Bytes"`
	Error    string `json:"error,omitempty"`
}

// AgentJoin is what an agent sends once to become a member.
type AgentJoin struct {
	Name  string `json:"name"`
	Token string `json:"token" doc:"The join token"`
}

// Validate checks the shape of the request.
func (r *AgentJoin) Validate() error {
	var v problem.Validation
	CheckName(&v, "name", r.Name)
	v.Check(r.Token != "", "token", "", "is missing; the server writes it to its --join-token-file")
	return v.Err("join request")
}

// AgentJoined is the answer: who the agent is and where it finds its work.
type AgentJoined struct {
	ID              string `json:"id"`
	Credential      string `json:"credential" doc:"Bearer token of this agent alone"`
	TemporalAddress string `json:"temporalAddress"`
	Namespace       string `json:"namespace"`
}

// AgentReport is what an agent tells every few seconds.
type AgentReport struct {
	Inventory Inventory       `json:"inventory"`
	VMs       []VMObservation `json:"vms"`
	Sent      time.Time       `json:"sent" doc:"When the node was looked at"`
	Error     string          `json:"error,omitempty" doc:"Why the node cannot run VMs now; the rest is then what was known at the time sent"`
}

// VMObservation is one domain as libvirt has it now.
type VMObservation struct {
	ID    string `json:"id" doc:"VM ID, which is the domain's UUID"`
	Phase Phase  `json:"phase" doc:"running, stopped or paused"`
}

// AgentPool tells an agent of a pool that it should report on.
type AgentPool struct {
	ID   string `json:"id"`
	Type string `json:"type"`
	Path string `json:"path"`
}

// AgentOrders is the answer to a report.
type AgentOrders struct {
	Pools []AgentPool `json:"pools"`
}

// Seed is what a VM's cloud-init gets; only the agent that runs the VM may read it.
type Seed struct {
	InstanceID string   `json:"instanceId"`
	Hostname   string   `json:"hostname"`
	SSHKeys    []string `json:"sshKeys,omitempty"`
	UserData   string   `json:"userData,omitempty"`
}
