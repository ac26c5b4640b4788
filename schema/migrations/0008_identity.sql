-- Models of the same weights, and models that earlier versions read in part.

alter table raw.model add column same_id integer;                   -- whose weights these are, by another name; NULL: their own
alter table raw.model add column same_how varchar;                  -- copy: byte for byte; layout: fused, split, stacked or turned
alter table raw.model add column to_reread boolean default false;   -- its digest does not cover all that its files hold

-- What was left out of digests: dtypes that are not read, weights beside an adapter's factors, heads that a config says
-- are tied; and torch files, of which another mapping than the model's may have been read.
update raw.model set to_reread = true
where digest is not null and (
    model_id in (
        select model_id from raw.skipped
        where reason like 'dtype %' or reason like 'a whole weight%' or reason like 'tied to %'
    )
    or model_id in (select model_id from raw.file where path like '%.pt' or path like '%.pth')
);

-- Sketches and sums are kept by names without what wrappers add. Where more is taken off now they are taken again, when
-- the model is imported again.
create temp table renamed as
select distinct model_id from raw.weight
where regexp_matches(tensor, '(^|\.)(_checkpoint_wrapped_module|_fsdp_wrapped_module|_fpw_module|_forward_module|_ddp_module|_module|_wrapped_module|module|_orig_mod|base_layer|modules_to_save|parametrizations)\.')
    or regexp_matches(tensor, '(?i)norm[^.]*\.(gamma|beta)$|(^|[._])ln(_\w*|\d*)?\.(gamma|beta)$')
    or regexp_matches(tensor, '^(0\.)?(text_model|pretrained_model|auto_model|llm|albert|bert|big_bird|bloom|camembert|convbert|data2vec_text|deberta|distilbert|electra|ernie|esm|gpt_neox|gptj|llama|longformer|mistral|mpnet|nomic_bert|opt|rembert|roberta|roberta_prelayernorm|xlm_roberta|xlm_roberta_xl|beit|convnext|convnextv2|deit|dinov2|hubert|swin|unispeech|vit|wav2vec2|wavlm)\.');
delete from raw.sketch where model_id in (from renamed);
delete from raw.direction where model_id in (from renamed) or base_id in (from renamed);
delete from raw.weight where model_id in (from renamed);
drop table renamed;
