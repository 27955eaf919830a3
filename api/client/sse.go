package client

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strings"
)

// maxEvent bounds one line of a stream and the data of one event.
const maxEvent = 8 << 20

var errEventTooLong = errors.New("an event is longer than 8 MiB")

// frame is one event of a server-sent event stream.
type frame struct {
	event string // "message" unless named
	data  string
	id    string // the last one seen in the stream
}

// frameReader splits a server-sent event stream into its events.
type frameReader struct {
	in     *bufio.Reader
	id     string
	first  bool
	wasCR  bool // the line before ended with CR, so that an LF right here belongs to it
	lineIn []byte
}

func newFrameReader(r io.Reader) *frameReader {
	return &frameReader{in: bufio.NewReaderSize(r, 64<<10), first: true}
}

// lastID returns the ID of the last event that was complete or that stood alone.
func (r *frameReader) lastID() string { return r.id }

// next returns the next event, or the error that ended the stream, io.EOF for one that ended between two events or inside
// one: what is not complete is not delivered.
func (r *frameReader) next() (frame, error) {
	f := frame{event: "message"}
	id, hasData := r.id, false
	var data strings.Builder
	for {
		line, err := r.line()
		if err != nil {
			return frame{}, err
		}
		if len(line) == 0 {
			r.id = id // an ID counts when its event is complete, with data or not
			if !hasData {
				f.event = "message"
				continue
			}
			f.data, f.id = data.String(), id
			return f, nil
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(name) {
		case "event":
			if f.event = string(value); f.event == "" {
				f.event = "message"
			}
		case "data":
			if hasData {
				data.WriteByte('\n')
			}
			if hasData = true; data.Len()+len(value) > maxEvent {
				return frame{}, errEventTooLong
			}
			data.Write(value)
		case "id":
			if !bytes.ContainsRune(value, 0) {
				id = string(value)
			}
		}
	}
}

// line returns the next line without its end, which is CR, LF or both. A last line without an end is not a line.
func (r *frameReader) line() ([]byte, error) {
	r.lineIn = r.lineIn[:0]
	for {
		b, err := r.in.ReadByte()
		if err != nil {
			return nil, err
		}
		wasCR := r.wasCR
		r.wasCR = b == '\r'
		switch {
		case b == '\n' && wasCR:
			continue
		case b == '\n' || b == '\r':
			if r.first {
				r.first = false
				r.lineIn = bytes.TrimPrefix(r.lineIn, []byte("\xef\xbb\xbf"))
			}
			return r.lineIn, nil
		}
		if len(r.lineIn) >= maxEvent {
			return nil, errEventTooLong
		}
		r.lineIn = append(r.lineIn, b)
	}
}
