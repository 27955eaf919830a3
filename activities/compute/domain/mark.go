package domain

import (
	"encoding/xml"
	"fmt"
	"strings"
	"time"

	"github.com/nextstack/nextstack/api/problem"
)

// The metadata element that marks a domain as ours: its XML namespace, and the prefix that it goes by.
const (
	Namespace = "https://nextstack.io/domain/1"
	Prefix    = "nextstack"
)

// Mark is what the metadata of a domain says of its VM.
type Mark struct {
	VM, Project, Name string
	HA                bool // to be stopped when the node's lease ends
}

// Element returns the mark as an XML element without a namespace, as libvirt wants it from those who change it.
func (m Mark) Element() string { return "<vm" + m.attrs() + "/>" }

func (m Mark) attrs() string {
	s := fmt.Sprintf(" id=%s project=%s name=%s", attr(m.VM), attr(m.Project), attr(m.Name))
	if m.HA {
		s += ` ha="yes"`
	}
	return s
}

// ReadMark reads the element that marks a domain.
func ReadMark(element string) (Mark, error) {
	var e struct {
		ID      string `xml:"id,attr"`
		Project string `xml:"project,attr"`
		Name    string `xml:"name,attr"`
		HA      string `xml:"ha,attr"`
	}
	if err := xml.Unmarshal([]byte(element), &e); err != nil {
		return Mark{}, problem.Wrap(err, problem.Internal, "the metadata of a domain cannot be read")
	}
	return Mark{VM: e.ID, Project: e.Project, Name: e.Name, HA: e.HA == "yes"}, nil
}

// attr returns s as a quoted XML attribute value.
func attr(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	_ = xml.EscapeText(&b, []byte(s)) // a strings.Builder takes everything
	b.WriteByte('"')
	return b.String()
}

// The metadata element of a domain whose guest rests for a moment.
const (
	RestNamespace = "https://nextstack.io/domain/rest/1"
	RestPrefix    = "nextstack-rest"
	RestElement   = "<rest/>"
)

// HeldElement is the same of a guest that nobody but who has halted it may let go on: since is from when on it rests.
func HeldElement(since time.Time) string {
	return fmt.Sprintf(`<rest held="%d"/>`, since.UnixMilli())
}

// ReadRest reads either.
func ReadRest(element string) (since time.Time, held bool, err error) {
	var e struct {
		Held int64 `xml:"held,attr"`
	}
	if err := xml.Unmarshal([]byte(element), &e); err != nil {
		return since, false, problem.Wrap(err, problem.Internal, "the metadata of a domain cannot be read")
	}
	return time.UnixMilli(e.Held), e.Held > 0, nil
}

// The metadata element of a domain whose guest has gone on from a memory: its XML namespace, and the prefix that it goes by.
const (
	RestoredNamespace = "https://nextstack.io/domain/restored/1"
	RestoredPrefix    = "nextstack-restored"
)

// restored says as what a guest has gone on.
func restored(as string) string {
	return fmt.Sprintf(`<%s:restored xmlns:%s=%q as=%s/>`, RestoredPrefix, RestoredPrefix, RestoredNamespace, attr(as))
}

// ReadRestored reads that.
func ReadRestored(element string) (as string, err error) {
	var e struct {
		As string `xml:"as,attr"`
	}
	err = xml.Unmarshal([]byte(element), &e)
	return e.As, problem.Wrap(err, problem.Internal, "the metadata of a domain cannot be read")
}
