//! `mixdistill export`: writes a model as a GGUF file for llama.cpp and Ollama.

use super::common::{Ended, Json, Session, say};
use clap::{Args, ValueEnum};
use mixdistill::gguf::TensorType;
use mixdistill::model::{GgufOptions, GgufReport, export_gguf, export_gguf_adapter};
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Examples:
  mixdistill export --model run --gguf student.gguf
  mixdistill export --model DIR --adapter run/adapter --gguf student.gguf --type q8_0
  mixdistill export --model run --adapter-only --gguf adapter.gguf
  ollama create student -f Modelfile";

/// Write a model as a GGUF file for llama.cpp and Ollama
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Flags {
    /// Model: a folder in Hugging Face format, a GGUF file, a run, or owner/name on the Hugging Face Hub
    #[arg(long, value_name = "MODEL", help_heading = "Input")]
    model: String,
    /// Adapter in PEFT format, or a run that trained one; merged into the model before the export [default:
    /// the run's adapter]
    #[arg(long, value_name = "DIR", help_heading = "Input")]
    adapter: Option<PathBuf>,
    /// Write only the adapter, for llama.cpp's --lora
    #[arg(long, conflicts_with_all = ["modelfile", "no_modelfile", "embedding_type", "name", "pre_tokenizer"],
        help_heading = "Output")]
    adapter_only: bool,
    /// File to write; it must not exist
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    gguf: PathBuf,
    /// Data type of the matrices; norms and biases stay f32
    #[arg(long = "type", value_enum, default_value = "f16", help_heading = "Output")]
    tensor_type: Type,
    /// Data type of the embedding and the head [default: same as --type, but q8_0 with q4_0]
    #[arg(long, value_enum, value_name = "TYPE", help_heading = "Output")]
    embedding_type: Option<Type>,
    /// Model name to store in the file [default: the folder's name]
    #[arg(long, value_name = "NAME", help_heading = "Output")]
    name: Option<String>,
    /// llama.cpp's name of the pre-tokenizer; needed only for tokenizers that llama.cpp's converter does not
    /// know
    #[arg(long, value_name = "NAME", help_heading = "Output")]
    pre_tokenizer: Option<String>,
    /// Ollama Modelfile to write; it must not exist [default: Modelfile next to the GGUF file]
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    modelfile: Option<PathBuf>,
    /// Write no Modelfile
    #[arg(long, conflicts_with = "modelfile", help_heading = "Output")]
    no_modelfile: bool,
    #[command(flatten)]
    pub json: Json,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Type {
    F32,
    F16,
    Bf16,
    #[value(name = "q8_0")]
    Q8_0,
    #[value(name = "q4_0")]
    Q4_0,
}

impl From<Type> for TensorType {
    fn from(kind: Type) -> Self {
        match kind {
            Type::F32 => Self::F32,
            Type::F16 => Self::F16,
            Type::Bf16 => Self::Bf16,
            Type::Q8_0 => Self::Q8_0,
            Type::Q4_0 => Self::Q4_0,
        }
    }
}

impl Flags {
    fn modelfile(&self) -> Option<PathBuf> {
        let beside = || self.gguf.with_file_name("Modelfile");
        (!self.no_modelfile).then(|| self.modelfile.clone().unwrap_or_else(beside))
    }
}

pub fn run(flags: &Flags, session: &Session) -> Ended {
    if flags.adapter_only {
        return adapter_alone(flags, session);
    }
    let modelfile = flags.modelfile();
    let options = GgufOptions {
        tensor_type: flags.tensor_type.into(),
        embedding_type: flags.embedding_type.map(Into::into),
        name: flags.name.clone(),
        pre_tokenizer: flags.pre_tokenizer.clone(),
        modelfile: modelfile.clone(),
        backend: session.global.backend().to_owned(),
    };
    let adapter = flags.adapter.as_deref();
    let report = export_gguf(&flags.model, adapter, &flags.gguf, &options, &session.context)?;
    let GgufReport { architecture, tensors, bytes, .. } = &report;
    let counts: Vec<String> =
        tensors.iter().map(|(kind, count)| format!("{count} in {}", kind.name())).collect();
    say!(session, "{architecture}, {:.1} MB; tensors: {}", *bytes as f64 / 1e6, counts.join(", "));
    let next = |path: &Path| format!("ollama create NAME -f {}", path.display());
    if let Some(path) = &modelfile {
        say!(session, "Next: {}", next(path));
    }
    let tensors: serde_json::Map<_, _> =
        tensors.iter().map(|(kind, count)| (kind.name().to_owned(), (*count).into())).collect();
    session.result(&serde_json::json!({
        "gguf": flags.gguf,
        "modelfile": modelfile,
        "architecture": architecture,
        "bytes": bytes,
        "tensors": tensors,
        "notices": report.notices,
    }))?;
    Ok(())
}

fn adapter_alone(flags: &Flags, session: &Session) -> Ended {
    let (adapter, kind) = (flags.adapter.as_deref(), flags.tensor_type.into());
    let bytes = export_gguf_adapter(&flags.model, adapter, &flags.gguf, kind, &session.context)?;
    say!(session, "{:.1} MB", bytes as f64 / 1e6);
    say!(session, "Next: llama-cli -m BASE.gguf --lora {}", flags.gguf.display());
    session.result(&serde_json::json!({
        "gguf": flags.gguf,
        "modelfile": null,
        "adapter_only": true,
        "bytes": bytes,
    }))?;
    Ok(())
}
