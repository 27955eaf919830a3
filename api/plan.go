package api

import (
	"encoding/json"

	"github.com/nextstack/nextstack/api/problem"
)

// What follows is how an accepted request reaches its workflow, and how the store is settled when that ends. None of it is
// shown to users.

// OperationPlan is what the acceptance of a request decided. It drives the settling of the operation: there is no code per
// kind of operation, only this record.
type OperationPlan struct {
	Input           json.RawMessage `json:"input,omitempty"`           // for the workflow: what to bring about
	Before          json.RawMessage `json:"before,omitempty"`          // for the workflow: what to go back to
	Locks           []Lock          `json:"locks,omitempty"`           // every record whose Operation is this one
	After           json.RawMessage `json:"after,omitempty"`           // an update: the record of the target as it shall be
	ReleaseIfDone   []string        `json:"releaseIfDone,omitempty"`   // claims that end with success
	ReleaseIfUndone []string        `json:"releaseIfUndone,omitempty"` // claims that end with failure
	PutIfDone       []Claim         `json:"putIfDone,omitempty"`       // claims that have another value after success
	PutIfUndone     []Claim         `json:"putIfUndone,omitempty"`     // claims that get their old value back with failure
	Makes           []string        `json:"makes,omitempty"`           // names of files that it makes, of which no record tells yet

	Journal int              `json:"journal,omitempty"` // number of the last journal that was written
	Cause   *problem.Problem `json:"cause,omitempty"`   // why the operation goes back, once it does
}

// Lock is one record that an operation holds, and what becomes of it.
type Lock struct {
	Ref    Ref   `json:"ref"`
	Before Phase `json:"before,omitempty"` // phase to go back to; empty: the operation made the record, and undoing removes it
	Then   Phase `json:"then,omitempty"`   // phase after success; empty: success removes the record
	// After is the record as success makes it, but for its phase; nil: as it is. Nobody else changes a record that is held.
	After json.RawMessage `json:"after,omitempty"`
}

// Claim is a claim and its value.
type Claim struct {
	Key    string `json:"key"`
	Value  string `json:"value,omitempty"`
	Sealed []byte `json:"sealed,omitempty"` // instead of a value: an encrypted secret, which is no text
	Set    string `json:"set,omitempty"`    // prefix of the claims that it is summed up with, whose ledger is touched; empty: none is
}

// Content is what is written at the key.
func (c Claim) Content() string {
	if c.Sealed != nil {
		return string(c.Sealed)
	}
	return c.Value
}

// VPCWiring is a VPC as the network needs it.
type VPCWiring struct {
	VPC     string `json:"vpc"`
	Name    string `json:"name"`
	Project string `json:"project"`
	CIDR    string `json:"cidr"`
}

// SubnetWiring is a subnet as the network needs it.
type SubnetWiring struct {
	Subnet  string   `json:"subnet"`
	Name    string   `json:"name"`
	Project string   `json:"project"`
	VPC     string   `json:"vpc"`
	CIDR    string   `json:"cidr"`
	Gateway string   `json:"gateway"`
	DNS     []string `json:"dns,omitempty"`
}

// SecurityGroupWiring is a security group as the network needs it.
type SecurityGroupWiring struct {
	SecurityGroup string `json:"securityGroup"`
	Name          string `json:"name"`
	Project       string `json:"project"`
	Rules         []Rule `json:"rules"`
}

// PortWiring is a port as the network needs it.
type PortWiring struct {
	Port           string   `json:"port"`
	Project        string   `json:"project"`
	Subnet         string   `json:"subnet"`
	MAC            string   `json:"mac"`
	Address        string   `json:"address"`
	SecurityGroups []string `json:"securityGroups,omitempty"`
	Hostname       string   `json:"hostname,omitempty"`
	VM             string   `json:"vm,omitempty"`
	// Chassis is where the port may be bound: the first is where it is, a second one where it is about to be, and activates
	// it with its first RARP. None: as it is now.
	Chassis []string `json:"chassis,omitempty"`
}

// Wiring returns the VPC as the network needs it.
func (v *VPC) Wiring() VPCWiring {
	return VPCWiring{VPC: v.ID, Name: v.Name, Project: v.Project, CIDR: v.Spec.CIDR}
}

// Wiring returns the subnet as the network needs it.
func (s *Subnet) Wiring() SubnetWiring {
	return SubnetWiring{Subnet: s.ID, Name: s.Name, Project: s.Project, VPC: s.Spec.VPC, CIDR: s.Spec.CIDR, Gateway: s.Spec.Gateway, DNS: s.Spec.DNS}
}

// Wiring returns the security group as the network needs it.
func (g *SecurityGroup) Wiring() SecurityGroupWiring {
	return SecurityGroupWiring{SecurityGroup: g.ID, Name: g.Name, Project: g.Project, Rules: g.Spec.Rules}
}

// Wiring returns the port as the network needs it.
func (p *Port) Wiring() PortWiring {
	return PortWiring{
		Port: p.ID, Project: p.Project, Subnet: p.Spec.Subnet, MAC: p.Spec.MAC, Address: p.Spec.Address,
		SecurityGroups: p.Spec.SecurityGroups, Hostname: p.Spec.Hostname, VM: p.Spec.VM,
	}
}

// ImageImport is the source of an image.
type ImageImport struct {
	Image  string `json:"image"`
	Format string `json:"format"`
	Upload string `json:"upload,omitempty"`
	Path   string `json:"path,omitempty"`
	URL    string `json:"url,omitempty"`
	SHA256 string `json:"sha256,omitempty"`
}

// FenceKey says which resource the steps on it are ordered by.
func (i ImageImport) FenceKey() string { return i.Image }

// ImageImported is what an import made.
type ImageImported struct {
	SHA256      string `json:"sha256"`
	Size        int64  `json:"size"`        // bytes of the stored file
	VirtualSize int64  `json:"virtualSize"` // bytes a guest sees
}

// ImageCapture is a volume that an image is made of.
type ImageCapture struct {
	Image string       `json:"image"`
	Name  string       `json:"name"`
	Agent AgentRef     `json:"agent"` // that reaches the volume
	Pool  PoolOnNode   `json:"pool"`
	Size  int64        `json:"size"` // bytes
	From  VolumeOrigin `json:"from"`
}

// VolumeExportWork is a volume that is made a file. Its Image, and that of the upload, is the operation: there is no image.
type VolumeExportWork struct {
	ImageCapture
	Format string `json:"format"`
}

// UploadExport is an upload of a volume, and the format that it is wanted in.
type UploadExport struct {
	ID     string `json:"id"` // of the upload, and of what is made of it
	Format string `json:"format"`
	SHA256 string `json:"sha256"` // of the upload
}

// FenceKey says which resource the steps on it are ordered by.
func (u UploadExport) FenceKey() string { return u.ID }

// ImageExportWork is an image and the format that it is wanted in.
type ImageExportWork struct {
	Image  string `json:"image"`
	Format string `json:"format"`
}

// FenceKey says which resource the steps on it are ordered by.
func (i ImageExportWork) FenceKey() string { return i.Image }

// ImageExported is what an export made.
type ImageExported struct {
	Format string `json:"format"`
	SHA256 string `json:"sha256"`
	Size   int64  `json:"size"` // bytes
}

// ImageRemoval says where an image and its copies are.
type ImageRemoval struct {
	Image  string      `json:"image"`
	Copies []ImageCopy `json:"copies"`
}

// ImageCopy is an image's copy in a pool on one node.
type ImageCopy struct {
	Agent string      `json:"agent"`
	Copy  CachedImage `json:"copy"`
}

// CachedImage names an image's copy in a pool.
type CachedImage struct {
	Image    string `json:"image"`
	SHA256   string `json:"sha256"`
	Pool     string `json:"pool"`
	PoolPath string `json:"poolPath"`
	// PoolType and PoolSource are the pool's; an empty type is PoolDir.
	PoolType   string     `json:"poolType,omitempty"`
	PoolSource PoolSource `json:"poolSource,omitzero"`
}

// FenceKey says which resource the steps on it are ordered by.
func (c CachedImage) FenceKey() string { return c.Image }

// PoolWork is a pool and the agents that have it.
type PoolWork struct {
	Pool   PoolOnNode `json:"pool"`
	Agents []AgentRef `json:"agents"`
}

// PoolChange is a pool, and the agents that have to be asked when its nodes change.
type PoolChange struct {
	Pool   PoolOnNode `json:"pool"`
	Add    []AgentRef `json:"add"`
	Remove []AgentRef `json:"remove"`
	// Check are the agents that have to be sure that they reach it at Source, before it is there for anybody.
	Check  []AgentRef `json:"check,omitempty"`
	Source PoolSource `json:"source,omitzero"`
	Secret string     `json:"secret,omitempty"` // operation that the key to check is kept under; empty: the pool's own
}

// PoolCheck asks an agent whether it reaches a pool in another way than it is used to.
type PoolCheck struct {
	Pool   PoolOnNode `json:"pool"` // with the source to try
	Secret string     `json:"secret,omitempty"`
}

// FenceKey says which resource the steps on it are ordered by.
func (p PoolCheck) FenceKey() string { return p.Pool.Pool }

// PoolOnNode is a pool directory on one node.
type PoolOnNode struct {
	Pool string `json:"pool"`
	Name string `json:"name,omitempty"` // for people
	Type string `json:"type"`
	Path string `json:"path"`
	// Shared: all agents of the pool see the same files in the directory.
	Shared bool `json:"shared,omitempty"`
	// Agent is the ID of the agent that prepares the directory: the marker keeps it, so that two agents that share a directory
	// find out.
	Agent string `json:"agent,omitempty"`
	// Join: another agent has made the directory a pool already. This one must find the very same, and makes nothing.
	Join bool `json:"join,omitempty"`
	// Source is where the storage is that is not the node's own.
	Source PoolSource `json:"source,omitzero"`
}

// FenceKey says which resource the steps on it are ordered by.
func (p PoolOnNode) FenceKey() string { return p.Pool }

// AgentChange is what is decided about a node, as the step that writes it down needs it.
type AgentChange struct {
	Agent  string            `json:"agent"`
	Spec   AgentSpec         `json:"spec"`
	Labels map[string]string `json:"labels,omitempty"`
	// Secret is the password of the fence device, sealed for the agent's ID; nil: as it is now. A node without a device has
	// no secret.
	Secret []byte `json:"secret,omitempty"`
}

// Cordon is whether a node takes new VMs, and why it does not.
type Cordon struct {
	Cordoned bool   `json:"cordoned"`
	Reason   string `json:"reason"`
}

// AgentRef names an agent.
type AgentRef struct {
	ID    string `json:"id"`
	Name  string `json:"name"`
	Ready bool   `json:"ready"`
}

// Phased is a resource whose phase operations change.
type Phased interface {
	Resource
	GetPhase() Phase
	SetPhase(p Phase, reason string)
}

// GetPhase implements Phased.
func (v *VM) GetPhase() Phase { return v.Status.Phase }

// SetPhase implements Phased.
func (v *VM) SetPhase(p Phase, reason string) { v.Status.Phase, v.Status.Reason = p, reason }

// GetPhase implements Phased.
func (v *Image) GetPhase() Phase { return v.Status.Phase }

// SetPhase implements Phased.
func (v *Image) SetPhase(p Phase, reason string) { v.Status.Phase, v.Status.Reason = p, reason }

// GetPhase implements Phased.
func (v *Pool) GetPhase() Phase { return v.Status.Phase }

// SetPhase implements Phased.
func (v *Pool) SetPhase(p Phase, reason string) { v.Status.Phase, v.Status.Reason = p, reason }

// GetPhase implements Phased.
func (v *Volume) GetPhase() Phase { return v.Status.Phase }

// SetPhase implements Phased.
func (v *Volume) SetPhase(p Phase, reason string) { v.Status.Phase, v.Status.Reason = p, reason }

// GetPhase implements Phased.
func (s *Snapshot) GetPhase() Phase { return s.Status.Phase }

// SetPhase implements Phased.
func (s *Snapshot) SetPhase(p Phase, reason string) { s.Status.Phase, s.Status.Reason = p, reason }

// GetPhase implements Phased.
func (c *Checkpoint) GetPhase() Phase { return c.Status.Phase }

// SetPhase implements Phased.
func (c *Checkpoint) SetPhase(p Phase, reason string) { c.Status.Phase, c.Status.Reason = p, reason }

// GetPhase implements Phased.
func (v *VPC) GetPhase() Phase { return v.Status.Phase }

// SetPhase implements Phased.
func (v *VPC) SetPhase(p Phase, reason string) { v.Status.Phase, v.Status.Reason = p, reason }

// GetPhase implements Phased.
func (s *Subnet) GetPhase() Phase { return s.Status.Phase }

// SetPhase implements Phased.
func (s *Subnet) SetPhase(phase Phase, reason string) {
	s.Status.Phase, s.Status.Reason = phase, reason
}

// GetPhase implements Phased.
func (p *Port) GetPhase() Phase { return p.Status.Phase }

// SetPhase implements Phased.
func (p *Port) SetPhase(phase Phase, reason string) { p.Status.Phase, p.Status.Reason = phase, reason }

// GetPhase implements Phased.
func (g *SecurityGroup) GetPhase() Phase { return g.Status.Phase }

// SetPhase implements Phased.
func (g *SecurityGroup) SetPhase(phase Phase, reason string) {
	g.Status.Phase, g.Status.Reason = phase, reason
}

// GetPhase implements Phased.
func (g *VMGroup) GetPhase() Phase { return g.Status.Phase }

// SetPhase implements Phased.
func (g *VMGroup) SetPhase(phase Phase, reason string) {
	g.Status.Phase, g.Status.Reason = phase, reason
}

// GetPhase implements Phased.
func (a *Agent) GetPhase() Phase { return a.Status.Phase }

// SetPhase implements Phased. It does nothing: an agent's phase is what is seen of it, whatever operation holds it.
func (a *Agent) SetPhase(Phase, string) {}

// New returns an empty resource of a kind that operations can hold, or nil.
func New(kind Kind) Phased {
	switch kind {
	case KindVM:
		return &VM{}
	case KindImage:
		return &Image{}
	case KindPool:
		return &Pool{}
	case KindVolume:
		return &Volume{}
	case KindSnapshot:
		return &Snapshot{}
	case KindCheckpoint:
		return &Checkpoint{}
	case KindVPC:
		return &VPC{}
	case KindSubnet:
		return &Subnet{}
	case KindPort:
		return &Port{}
	case KindSecurityGroup:
		return &SecurityGroup{}
	case KindVMGroup:
		return &VMGroup{}
	case KindAgent:
		return &Agent{}
	default:
		return nil
	}
}
