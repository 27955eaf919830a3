package api

import (
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"github.com/nextstack/nextstack/api/problem"
)

// Pool is a place for volumes.
type Pool struct {
	Meta
	Spec   PoolSpec   `json:"spec"`
	Status PoolStatus `json:"status"`
}

// ResourceKind implements Resource.
func (*Pool) ResourceKind() Kind { return KindPool }

// Pool types.
const (
	PoolDir     = "dir"       // files in a directory of each node
	PoolNFS     = "nfs"       // files of an NFS server
	PoolGluster = "glusterfs" // files of a GlusterFS volume
	PoolRBD     = "rbd"       // block devices of a Ceph cluster
)

// PoolSpec says where a pool is.
type PoolSpec struct {
	Type   string     `json:"type" enum:"dir,nfs,glusterfs,rbd"`
	Path   string     `json:"path,omitempty" doc:"Absolute directory, the same on every agent of the pool; of NFS and GlusterFS, where the agents mount it; of Ceph, what names the pool"`
	Shared bool       `json:"shared,omitempty" doc:"All its agents see the same files there: a network file system"`
	Source PoolSource `json:"source,omitzero"`
	Agents []string   `json:"agents,omitempty" doc:"Agent IDs that have the pool"`
}

// Files reports whether the pool keeps volumes as files, each snapshot of which adds one.
func (s *PoolSpec) Files() bool { return s.Type != PoolRBD }

// PoolStatus is what the agents say about a pool.
type PoolStatus struct {
	Phase    Phase  `json:"phase"`
	Reason   string `json:"reason,omitempty"`
	Capacity int64  `json:"capacity" doc:"Bytes"`
	Free     int64  `json:"free" doc:"Bytes"`
	Promised int64  `json:"promised,omitempty" doc:"Bytes that its volumes take when they are written to the end; more than the capacity: it is overcommitted"`
	Volumes  int    `json:"volumes,omitempty"`
	// Agents is what was found out by asking them, not what was said when the pool was made.
	Agents []PoolAgent `json:"agents,omitempty" doc:"Which of its agents reach it"`
	// Leaving is set by the operation that changes the pool's nodes, and for as long as it runs.
	Leaving []string `json:"leaving,omitempty" doc:"Agent IDs that are being taken out of the pool: nothing new is put there"`
}

// PoolAgent is a pool as one of its agents sees it.
type PoolAgent struct {
	Agent   string `json:"agent" doc:"Agent ID"`
	Reaches bool   `json:"reaches" doc:"It could use the pool when it last looked"`
	Reason  string `json:"reason,omitempty" doc:"Why it cannot"`
}

// Takes reports whether something new may be put into the pool on a node: it has the pool, and keeps it.
func (v *Pool) Takes(agent string) bool {
	return slices.Contains(v.Spec.Agents, agent) && !slices.Contains(v.Status.Leaving, agent)
}

// PoolCreate is the request for a pool.
type PoolCreate struct {
	Name   string            `json:"name"`
	Labels map[string]string `json:"labels,omitempty"`
	Type   string            `json:"type" enum:"dir,nfs,glusterfs,rbd"`
	Path   string            `json:"path,omitempty" doc:"Of a directory; the mount points of NFS and GlusterFS are the agents' own"`
	Shared bool              `json:"shared,omitempty" doc:"All its agents see the same files there, which is tried out; all other types always are"`
	Source PoolSource        `json:"source,omitzero" doc:"Of all types but directories"`
	Key    string            `json:"key,omitempty" doc:"Key of the Ceph user, as ceph auth print-key prints it. Only ever sent, never shown; kept encrypted"`
	Agents []string          `json:"agents,omitempty" doc:"Names or IDs; empty: all agents that are ready now"`
}

// Validate checks the shape of the request.
func (r *PoolCreate) Validate() error {
	var v problem.Validation
	CheckName(&v, "name", r.Name)
	CheckLabels(&v, "labels", r.Labels)
	r.checkWhere(&v)
	checkRefs(&v, "agents", r.Agents)
	return v.Err("pool " + r.Name)
}

// PoolUpdate changes a pool. Nil and empty fields leave things as they are.
type PoolUpdate struct {
	Labels       *map[string]string `json:"labels,omitempty"`
	AddAgents    []string           `json:"addAgents,omitempty" doc:"Names or IDs of agents that get the pool; one that has it stays as it is"`
	RemoveAgents []string           `json:"removeAgents,omitempty" doc:"Names or IDs of agents that lose it; nothing of the pool may be on them"`
	Monitors     []string           `json:"monitors,omitempty" doc:"Of a Ceph pool: where its cluster is now; the whole list"`
	User         string             `json:"user,omitempty" doc:"Of a Ceph pool: another user of the cluster, without client.; needs the key"`
	Key          string             `json:"key,omitempty" doc:"Of a Ceph pool: another key of its user. Only ever sent, never shown; kept encrypted"`
}

// Redirects reports whether the pool is reached in another way afterwards.
func (r *PoolUpdate) Redirects() bool { return len(r.Monitors) > 0 || r.User != "" || r.Key != "" }

// Validate checks the shape of the request.
func (r *PoolUpdate) Validate() error {
	var v problem.Validation
	if r.Labels != nil {
		CheckLabels(&v, "labels", *r.Labels)
	}
	checkRefs(&v, "addAgents", r.AddAgents)
	checkRefs(&v, "removeAgents", r.RemoveAgents)
	for i, ref := range r.RemoveAgents {
		v.Check(!slices.Contains(r.AddAgents, ref), pathIndex("removeAgents", i), ref, "is to be added as well")
	}
	checkMonitors(&v, "monitors", r.Monitors)
	if r.User != "" {
		checkCephUser(&v, "user", r.User)
		v.Check(r.Key != "", "key", "", "is missing: another user has another key")
	}
	v.Check(r.Key == "" || IsCephKey(r.Key), "key", "", "must be the key of the user: ceph auth print-key client.USER")
	v.Check(!r.Redirects() || len(r.AddAgents)+len(r.RemoveAgents) == 0, "addAgents", nil, "cannot change together with how the cluster is reached: do one after the other")
	return v.Err("pool update")
}

// Image is an immutable disk image that VMs start from.
type Image struct {
	Meta
	Spec   ImageSpec   `json:"spec"`
	Status ImageStatus `json:"status"`
}

// ResourceKind implements Resource.
func (*Image) ResourceKind() Kind { return KindImage }

// Image formats.
const (
	FormatQCOW2 = "qcow2"
	FormatRaw   = "raw"
	FormatVMDK  = "vmdk"
	FormatVDI   = "vdi"
	FormatVHDX  = "vhdx"
	FormatVPC   = "vpc" // VHD, by the name that QEMU gives it
)

// ImageFormats are the formats that images can be imported from and exported to. They are kept as qcow2.
func ImageFormats() []string {
	return []string{FormatQCOW2, FormatRaw, FormatVMDK, FormatVDI, FormatVHDX, FormatVPC}
}

// IsImageFormat reports whether images can be imported from and exported to this format.
func IsImageFormat(format string) bool { return slices.Contains(ImageFormats(), format) }

// ImageSpec says what was imported.
type ImageSpec struct {
	Format string `json:"format" enum:"qcow2,raw,vmdk,vdi,vhdx,vpc" doc:"Format of the source"`
	Source string `json:"source" doc:"upload:<id>, volume:<id>, snapshot:<id>, the path on the server, or the URL"`
	// What follows can change; the content cannot.
	Deprecated bool   `json:"deprecated,omitempty" doc:"Nobody should make new VMs of it, who may nevertheless"`
	Advice     string `json:"advice,omitempty" doc:"What to do instead, told to those who use a deprecated image"`
}

// ImageStatus is what the import found.
type ImageStatus struct {
	Phase       Phase  `json:"phase"`
	Reason      string `json:"reason,omitempty"`
	SHA256      string `json:"sha256,omitempty" doc:"Of the stored file; it is also its name"`
	Size        int64  `json:"size,omitempty" doc:"Bytes of the stored file"`
	VirtualSize int64  `json:"virtualSize,omitempty" doc:"Bytes a guest sees"`
}

// ImageCreate is the request for an image: from an upload, from a file on the server, from a URL, or of a volume or a snapshot.
type ImageCreate struct {
	Name   string            `json:"name"`
	Labels map[string]string `json:"labels,omitempty"`
	Format string            `json:"format,omitempty" enum:"qcow2,raw,vmdk,vdi,vhdx,vpc" doc:"What the file is; it is never guessed. Left out for what is made of a volume"`
	Upload string            `json:"upload,omitempty" doc:"ID that PUT /v1/uploads/{id} was sent to"`
	Path   string            `json:"path,omitempty" doc:"File on the server, inside a directory that its configuration allows"`
	URL    string            `json:"url,omitempty" doc:"http or https, beginning as the server's configuration allows; a query is kept and shown, so no secret should be in it"`
	// An image can be made of what is in a pool, too.
	Volume   string `json:"volume,omitempty" doc:"Volume that it becomes a copy of; no VM that runs may have that one"`
	Snapshot string `json:"snapshot,omitempty" doc:"Snapshot that it becomes a copy of"`
	SHA256   string `json:"sha256,omitempty" doc:"If given, the source must have it"`
}

// Validate checks the shape of the request.
func (r *ImageCreate) Validate() error {
	var v problem.Validation
	CheckName(&v, "name", r.Name)
	CheckLabels(&v, "labels", r.Labels)
	sources := 0
	for _, s := range []string{r.Upload, r.Path, r.URL, r.Volume, r.Snapshot} {
		if s != "" {
			sources++
		}
	}
	v.Check(sources == 1, "upload", r.Upload, "give one of upload, path, url, volume and snapshot")
	if r.OfVolume() {
		v.Check(r.Format == "" || r.Format == FormatQCOW2, "format", r.Format, "must be left out: what is made of a volume is qcow2")
		v.Check(r.SHA256 == "", "sha256", r.SHA256, "must be left out: nobody knows it before")
		for path, ref := range map[string]string{"volume": r.Volume, "snapshot": r.Snapshot} {
			if ref != "" {
				CheckRef(&v, path, ref)
			}
		}
	} else {
		v.Check(IsImageFormat(r.Format), "format", r.Format, "must be one of %s", strings.Join(ImageFormats(), ", "))
	}
	if r.URL != "" {
		u, err := url.Parse(r.URL)
		shown := any(nil)
		if err == nil {
			shown = u.Redacted() // a refusal is no place for a password
		}
		v.Check(err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Hostname() != "" && u.User == nil && u.Fragment == "" && len(r.URL) <= 2048, "url", shown,
			"must be a URL like https://HOST/FILE, without a password, of at most 2048 characters")
	}
	if r.Upload != "" {
		v.Check(IsUUID(r.Upload), "upload", r.Upload, "must be a UUID")
	}
	if r.Path != "" {
		v.Check(filepath.IsAbs(r.Path) && filepath.Clean(r.Path) == r.Path && !strings.ContainsAny(r.Path, "\n\r\x00"), "path", r.Path, "must be an absolute, clean file path")
	}
	v.Check(r.SHA256 == "" || isSHA256(r.SHA256), "sha256", r.SHA256, "must be 64 hexadecimal digits")
	return v.Err("image " + r.Name)
}

// OfVolume reports whether the image is made of what is in a pool.
func (r *ImageCreate) OfVolume() bool { return r.Volume != "" || r.Snapshot != "" }

// maxAdvice bounds what is said of a deprecated image, in bytes.
const maxAdvice = 500

// ImageUpdate changes what is said of an image; what is in it never changes. Nil fields leave things as they are.
type ImageUpdate struct {
	Labels     *map[string]string `json:"labels,omitempty"`
	Deprecated *bool              `json:"deprecated,omitempty" doc:"Nobody should make new VMs of it; it can still be done, with a warning"`
	Advice     *string            `json:"advice,omitempty" doc:"What to do instead; it goes when the image is not deprecated any more"`
}

// Validate checks the shape of the request.
func (r *ImageUpdate) Validate() error {
	var v problem.Validation
	if r.Labels != nil {
		CheckLabels(&v, "labels", *r.Labels)
	}
	if r.Advice != nil {
		clean := strings.IndexFunc(*r.Advice, unicode.IsControl) < 0
		v.Check(clean && len(*r.Advice) <= maxAdvice, "advice", *r.Advice, "must be one line of at most %d bytes", maxAdvice)
	}
	return v.Err("image update")
}

// ImageExport is the request to make an image in another format than it is kept in, to be downloaded then.
type ImageExport struct {
	Format string `json:"format" enum:"raw,vmdk,vdi,vhdx,vpc" doc:"qcow2 needs no export: it can be downloaded as it is"`
}

// Validate checks the shape of the request.
func (r *ImageExport) Validate() error {
	var v problem.Validation
	v.Check(IsImageFormat(r.Format) && r.Format != FormatQCOW2, "format", r.Format, "must be one of %s; qcow2 needs no export", strings.Join(ImageFormats()[1:], ", "))
	return v.Err("export")
}

func isSHA256(s string) bool {
	return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
}
